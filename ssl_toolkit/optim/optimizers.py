"""Optimizers, described by what a configuration says and built once the parameters are known."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from timm.optim.lars import Lars


class OptimizerSpec(ABC):
    """An optimizer that waits for its parameters.

    Attributes:
        lr: Learning rate, before the schedule's factor.
        weight_decay: Weight decay of the parameters that are decayed.
    """

    def __init__(self, lr: float, weight_decay: float) -> None:
        if lr <= 0:
            raise ValueError(f"optimizer.lr is {lr}, expected a number above 0")
        if weight_decay < 0:
            raise ValueError(f"optimizer.weight_decay is {weight_decay}, expected 0 or more")
        self.lr = lr
        self.weight_decay = weight_decay

    @abstractmethod
    def build(self, groups: list[dict[str, Any]], fused: bool = False) -> torch.optim.Optimizer:
        """Builds the optimizer.

        Args:
            groups: Those of `ssl_toolkit.optim.parameter_groups`.
            fused: Use a kernel that makes the whole step in one pass over the memory, if the optimizer has one.
        """


class SGD(OptimizerSpec):
    """Stochastic gradient descent with momentum (Polyak 1964; Sutskever et al., ICML 2013, equations 3 and 4).

    Args:
        lr: Learning rate, above 0.
        momentum: Decay of the velocity, 0 (plain SGD) to 1.
        nesterov: Nesterov's accelerated gradient.
        weight_decay: L2 penalty's strength, added to the gradient.
    """

    def __init__(
        self, lr: float = 0.1, momentum: float = 0.9, nesterov: bool = False, weight_decay: float = 1e-4
    ) -> None:
        super().__init__(lr, weight_decay)
        self.momentum = momentum
        self.nesterov = nesterov

    def build(self, groups: list[dict[str, Any]], fused: bool = False) -> torch.optim.Optimizer:
        """Builds torch's own SGD."""
        return torch.optim.SGD(groups, momentum=self.momentum, nesterov=self.nesterov, fused=fused)


class Adam(OptimizerSpec):
    """Adam (Kingma and Ba 2015, arXiv 1412.6980, algorithm 1); the decay is an L2 penalty in the gradient.

    Args:
        lr: Learning rate, above 0.
        betas: Decay of the running means of the gradient and of its square, each 0 to 1.
        eps: Added to the denominator.
        weight_decay: L2 penalty's strength, added to the gradient.
    """

    def __init__(
        self, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, weight_decay: float = 0.0
    ) -> None:
        super().__init__(lr, weight_decay)
        self.betas = betas
        self.eps = eps

    def build(self, groups: list[dict[str, Any]], fused: bool = False) -> torch.optim.Optimizer:
        """Builds torch's own Adam."""
        return torch.optim.Adam(groups, betas=self.betas, eps=self.eps, fused=fused)


class AdamW(OptimizerSpec):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019, arXiv 1711.05101, algorithm 2).

    Args:
        lr: Learning rate, above 0.
        betas: Decay of the running means of the gradient and of its square, each 0 to 1.
        eps: Added to the denominator.
        weight_decay: Share of a weight that is taken off at each step, times the learning rate.
    """

    def __init__(
        self, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, weight_decay: float = 0.05
    ) -> None:
        super().__init__(lr, weight_decay)
        self.betas = betas
        self.eps = eps

    def build(self, groups: list[dict[str, Any]], fused: bool = False) -> torch.optim.Optimizer:
        """Builds torch's own AdamW."""
        return torch.optim.AdamW(groups, betas=self.betas, eps=self.eps, fused=fused)


class LARS(OptimizerSpec):
    """Layer-wise adaptive rate scaling for large batches (You, Gitman, Ginsburg 2017, arXiv 1708.03888, algorithm 1).

    Parameters without weight decay (biases, normalisation layers) are not adapted, as in SimCLR.

    Args:
        lr: Learning rate, above 0; the trust ratio makes it one to two orders larger than SGD's.
        momentum: Decay of the velocity, 0 to 1.
        weight_decay: L2 penalty's strength.
        trust_coefficient: The paper's eta.
    """

    def __init__(
        self, lr: float = 0.4, momentum: float = 0.9, weight_decay: float = 1e-4, trust_coefficient: float = 1e-3
    ) -> None:
        super().__init__(lr, weight_decay)
        self.momentum = momentum
        self.trust_coefficient = trust_coefficient

    def build(self, groups: list[dict[str, Any]], fused: bool = False) -> torch.optim.Optimizer:
        """Builds timm's LARS, which has no fused kernel."""
        return Lars(
            groups,
            lr=self.lr,
            momentum=self.momentum,  # pyright: ignore[reportArgumentType] - typed by its default, the int 0
            trust_coeff=self.trust_coefficient,
        )
