"""Stochastic gradient descent and related optimizers: a gradient or its running sum, scaled."""

from __future__ import annotations

from typing import Any

import torch
from timm.optim.lars import Lars
from timm.optim.lion import Lion as TimmLion
from timm.optim.sgdp import SGDP as TimmSGDP

from ssl_toolkit.optim.base import OptimizerSpec, adapt_matrices, check_betas, check_fraction


class SGD(OptimizerSpec):
    """SGD: stochastic gradient descent with momentum (Polyak 1964; Sutskever et al., ICML 2013, equations 3 and 4).

    What it is otherwise called is a matter of settings: ``momentum: 0`` is plain gradient descent, on single samples
    with ``data.batch_size: 1``, and on the whole set ("full batch") with ``trainer.accumulate_grad_batches`` times
    ``data.batch_size`` images of it.

    Args:
        lr: Learning rate, above 0.
        momentum: Decay of the velocity, 0 (plain SGD) to 1.
        nesterov: Nesterov's accelerated gradient.
        weight_decay: L2 penalty's strength, added to the gradient.
    """

    shardable = True

    def __init__(
        self, lr: float = 0.1, momentum: float = 0.9, nesterov: bool = False, weight_decay: float = 1e-4
    ) -> None:
        super().__init__(lr, weight_decay)
        check_fraction(momentum=momentum)
        if nesterov and not momentum:
            raise ValueError("optimizer.nesterov needs a momentum above 0")
        self.momentum = momentum
        self.nesterov = nesterov

    def build(self, groups: list[dict[str, Any]], fused: bool = False) -> torch.optim.Optimizer:
        """Builds torch's own SGD."""
        return torch.optim.SGD(groups, momentum=self.momentum, nesterov=self.nesterov, fused=fused)


class SGDP(OptimizerSpec):
    """SGDP: SGD whose step loses its radial part where a normalisation makes the length of a weight meaningless.

    Heo et al., ICLR 2021, arXiv 2006.08217, algorithm 1: the radial part does nothing but let weights grow, and with
    them the effective rate fall.

    Args:
        lr: Learning rate, above 0.
        momentum: Decay of the velocity, 0 to 1.
        nesterov: Nesterov's accelerated gradient.
        delta: How close to orthogonal to its weight a gradient must be, to be taken for that of a normalised layer.
        weight_decay: Decoupled decay's strength; a tenth of it where a step was projected, as the authors have it.
    """

    def __init__(
        self,
        lr: float = 0.1,
        momentum: float = 0.9,
        nesterov: bool = True,
        delta: float = 0.1,
        weight_decay: float = 1e-5,
    ) -> None:
        super().__init__(lr, weight_decay)
        check_fraction(momentum=momentum)
        self.momentum = momentum
        self.nesterov = nesterov
        self.delta = delta

    def build(self, groups: list[dict[str, Any]], fused: bool = False) -> torch.optim.Optimizer:
        """Builds timm's SGDP, which has no fused kernel."""
        momentum: Any = self.momentum  # typed by its default, the int 0
        return TimmSGDP(groups, lr=self.lr, momentum=momentum, nesterov=self.nesterov, delta=self.delta)


class LARS(OptimizerSpec):
    """LARS: layer-wise adaptive rate scaling for large batches (You, Gitman, Ginsburg 2017, arXiv 1708.03888, algorithm
    1).

    Biases and normalisation layers are not adapted, as in SimCLR.

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
        check_fraction(momentum=momentum)
        self.momentum = momentum
        self.trust_coefficient = trust_coefficient

    def build(self, groups: list[dict[str, Any]], fused: bool = False) -> torch.optim.Optimizer:
        """Builds timm's LARS, which has no fused kernel."""
        momentum: Any = self.momentum  # typed by its default, the int 0
        return Lars(adapt_matrices(groups), lr=self.lr, momentum=momentum, trust_coeff=self.trust_coefficient)


class Lion(OptimizerSpec):
    """Lion: the sign of a running mean of the gradients (Chen et al. 2023, arXiv 2302.06675, algorithm 2).

    Args:
        lr: Learning rate, above 0; three to ten times less than AdamW's (section 5).
        betas: How much of the running mean the step takes, and the mean's own decay; each 0 to 1.
        weight_decay: Fraction of a weight that is taken off at each step, times the learning rate; three to ten times
            more than AdamW's.
    """

    shardable = True

    def __init__(self, lr: float = 1e-4, betas: tuple[float, float] = (0.9, 0.99), weight_decay: float = 0.3) -> None:
        super().__init__(lr, weight_decay)
        check_betas(betas)
        self.betas = betas

    def build(self, groups: list[dict[str, Any]], fused: bool = False) -> torch.optim.Optimizer:
        """Builds timm's Lion, which has no fused kernel."""
        return TimmLion(groups, lr=self.lr, betas=self.betas)
