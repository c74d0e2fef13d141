"""Adagrad and related optimizers: a separate rate for each weight, from the squares of its gradients."""

from __future__ import annotations

from typing import Any

import torch

from ssl_toolkit.optim.base import OptimizerSpec, check_fraction


class Adagrad(OptimizerSpec):
    """Adagrad: gradients over the root of the sum of their squares so far (Duchi, Hazan, Singer 2011, JMLR 12, section
    1.1).

    Args:
        lr: Learning rate, above 0.
        eps: Added to the denominator.
        weight_decay: L2 penalty's strength, added to the gradient.
    """

    shardable = True

    def __init__(self, lr: float = 1e-2, eps: float = 1e-10, weight_decay: float = 0.0) -> None:
        super().__init__(lr, weight_decay)
        self.eps = eps

    def build(self, groups: list[dict[str, Any]], fused: bool = False) -> torch.optim.Optimizer:
        """Builds torch's own Adagrad, whose fused kernel is for a CPU."""
        on_cpu = all(parameter.device.type == "cpu" for group in groups for parameter in group["params"])
        return torch.optim.Adagrad(groups, lr=self.lr, eps=self.eps, fused=fused and on_cpu)


class Adadelta(OptimizerSpec):
    """Adadelta: gradients in the units of the weights (Zeiler 2012, arXiv 1212.5701, algorithm 1).

    Args:
        lr: Factor on the paper's step, above 0.
        rho: Decay of the running means of the squared gradients and steps, 0 to 1.
        eps: Added under both roots.
        weight_decay: L2 penalty's strength, added to the gradient.
    """

    shardable = True

    def __init__(self, lr: float = 1.0, rho: float = 0.9, eps: float = 1e-6, weight_decay: float = 0.0) -> None:
        super().__init__(lr, weight_decay)
        check_fraction(rho=rho)
        self.rho = rho
        self.eps = eps

    def build(self, groups: list[dict[str, Any]], fused: bool = False) -> torch.optim.Optimizer:
        """Builds torch's own Adadelta, which has no fused kernel."""
        return torch.optim.Adadelta(groups, lr=self.lr, rho=self.rho, eps=self.eps)


class RMSprop(OptimizerSpec):
    """RMSprop: gradients over the root of the running mean of their squares (Tieleman and Hinton 2012, lecture 6.5,
    slide 29).

    Args:
        lr: Learning rate, above 0.
        alpha: Decay of the running mean of the squared gradients, 0 to 1.
        eps: Added to the denominator.
        momentum: Decay of a velocity over the scaled gradients, 0 for none.
        weight_decay: L2 penalty's strength, added to the gradient.
    """

    shardable = True

    def __init__(
        self,
        lr: float = 1e-3,
        alpha: float = 0.99,
        eps: float = 1e-8,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(lr, weight_decay)
        check_fraction(alpha=alpha, momentum=momentum)
        self.alpha = alpha
        self.eps = eps
        self.momentum = momentum

    def build(self, groups: list[dict[str, Any]], fused: bool = False) -> torch.optim.Optimizer:
        """Builds torch's own RMSprop, which has no fused kernel."""
        return torch.optim.RMSprop(groups, lr=self.lr, alpha=self.alpha, eps=self.eps, momentum=self.momentum)
