"""Adam and related optimizers: a running mean of the gradients over the root of that of their squares."""

from __future__ import annotations

from typing import Any

import torch
from timm.optim.adamp import AdamP as TimmAdamP
from timm.optim.lamb import Lamb

from ssl_toolkit.optim.base import OptimizerSpec, adapt_matrices, check_betas


class _AdamSpec(OptimizerSpec):
    """Base class of this family."""

    def __init__(self, lr: float, betas: tuple[float, float], eps: float, weight_decay: float) -> None:
        super().__init__(lr, weight_decay)
        check_betas(betas)
        if eps < 0:
            raise ValueError(f"optimizer.eps is {eps}, expected 0 or more")
        self.betas = betas
        self.eps = eps


class Adam(_AdamSpec):
    """Adam (Kingma and Ba 2015, arXiv 1412.6980, algorithm 1); the decay is an L2 penalty in the gradient.

    Args:
        lr: Learning rate, above 0.
        betas: Decay of the running means of the gradient and of its square, each 0 to 1.
        eps: Added to the denominator.
        weight_decay: L2 penalty's strength, added to the gradient.
    """

    shardable = True

    def __init__(
        self, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, weight_decay: float = 0.0
    ) -> None:
        super().__init__(lr, betas, eps, weight_decay)

    def build(self, groups: list[dict[str, Any]], fused: bool = False) -> torch.optim.Optimizer:
        """Builds torch's own Adam."""
        return torch.optim.Adam(groups, betas=self.betas, eps=self.eps, fused=fused)


class AdamW(_AdamSpec):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019, arXiv 1711.05101, algorithm 2).

    Args:
        lr: Learning rate, above 0.
        betas: Decay of the running means of the gradient and of its square, each 0 to 1.
        eps: Added to the denominator.
        weight_decay: Fraction of a weight that is taken off at each step, times the learning rate.
    """

    shardable = True

    def __init__(
        self, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, weight_decay: float = 0.05
    ) -> None:
        super().__init__(lr, betas, eps, weight_decay)

    def build(self, groups: list[dict[str, Any]], fused: bool = False) -> torch.optim.Optimizer:
        """Builds torch's own AdamW."""
        return torch.optim.AdamW(groups, betas=self.betas, eps=self.eps, fused=fused)


class NAdam(_AdamSpec):
    """NAdam: Adam with Nesterov's momentum (Dozat, ICLR workshop 2016, algorithm 2), and decoupled weight decay.

    Args:
        lr: Learning rate, above 0.
        betas: Decay of the running means of the gradient and of its square, each 0 to 1.
        eps: Added to the denominator.
        momentum_decay: How quickly the momentum rises from half of its value to all of it: 0.004 is the paper's,
            0 leaves it at half.
        weight_decay: Fraction of a weight that is taken off at each step, times the learning rate.
    """

    shardable = True

    def __init__(
        self,
        lr: float = 2e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        momentum_decay: float = 4e-3,
        weight_decay: float = 0.05,
    ) -> None:
        super().__init__(lr, betas, eps, weight_decay)
        self.momentum_decay = momentum_decay

    def build(self, groups: list[dict[str, Any]], fused: bool = False) -> torch.optim.Optimizer:
        """Builds torch's own NAdam, which has no fused kernel."""
        return torch.optim.NAdam(
            groups, betas=self.betas, eps=self.eps, momentum_decay=self.momentum_decay, decoupled_weight_decay=True
        )


class RAdam(_AdamSpec):
    """RAdam: Adam that is momentum as long as its denominator is too noisy (Liu et al. 2020, arXiv 1908.03265,
    algorithm 2).

    Args:
        lr: Learning rate, above 0.
        betas: Decay of the running means of the gradient and of its square, each 0 to 1.
        eps: Added to the denominator.
        weight_decay: Fraction of a weight that is taken off at each step, times the learning rate.
    """

    shardable = True

    def __init__(
        self, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, weight_decay: float = 0.05
    ) -> None:
        super().__init__(lr, betas, eps, weight_decay)

    def build(self, groups: list[dict[str, Any]], fused: bool = False) -> torch.optim.Optimizer:
        """Builds torch's own RAdam, which has no fused kernel."""
        return torch.optim.RAdam(groups, betas=self.betas, eps=self.eps, decoupled_weight_decay=True)


class AdamP(_AdamSpec):
    """AdamP: AdamW whose step loses its radial part where a normalisation makes the length of a weight meaningless.

    Heo et al., ICLR 2021, arXiv 2006.08217, algorithm 2; see `SGDP`.

    Args:
        lr: Learning rate, above 0.
        betas: Decay of the running means of the gradient and of its square, each 0 to 1.
        eps: Added to the denominator.
        delta: How close to orthogonal to its weight a gradient must be, to be taken for that of a normalised layer.
        nesterov: Nesterov's momentum.
        weight_decay: Fraction of a weight that is taken off at each step, times the learning rate; a tenth of it where
            a step was projected, as the authors have it.
    """

    def __init__(
        self,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        delta: float = 0.1,
        nesterov: bool = False,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(lr, betas, eps, weight_decay)
        self.delta = delta
        self.nesterov = nesterov

    def build(self, groups: list[dict[str, Any]], fused: bool = False) -> torch.optim.Optimizer:
        """Builds timm's AdamP, which has no fused kernel."""
        return TimmAdamP(groups, betas=self.betas, eps=self.eps, delta=self.delta, nesterov=self.nesterov)


class LAMB(_AdamSpec):
    """LAMB: Adam with LARS's layer-wise rates, for large batches (You et al. 2020, arXiv 1904.00962, algorithm 2).

    Biases and normalisation layers are not adapted.

    Args:
        lr: Learning rate, above 0.
        betas: Decay of the running means of the gradient and of its square, each 0 to 1.
        eps: Added to the denominator.
        weight_decay: Fraction of a weight that is added to its step, before the step is scaled.
    """

    def __init__(
        self, lr: float = 5e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-6, weight_decay: float = 0.02
    ) -> None:
        super().__init__(lr, betas, eps, weight_decay)

    def build(self, groups: list[dict[str, Any]], fused: bool = False) -> torch.optim.Optimizer:
        """Builds timm's LAMB, which has no fused kernel; clipping is the trainer's business."""
        return Lamb(adapt_matrices(groups), lr=self.lr, betas=self.betas, eps=self.eps, max_grad_norm=None)
