"""Muon: steps whose singular values are all equal."""

from __future__ import annotations

from typing import Any

import torch
from timm.optim.muon import Muon as TimmMuon

from ssl_toolkit.optim.base import OptimizerSpec, check_betas, check_fraction


class Muon(OptimizerSpec):
    """Muon: a running mean of the gradients, made orthogonal by Newton and Schulz's iteration (Jordan et al. 2024).

    https://kellerjordan.github.io/posts/muon/; the step's length is scaled to that of AdamW, so that AdamW's rate and
    decay serve (Liu et al. 2025, arXiv 2502.16982, equation 4). The kernel of a convolution is a matrix with a row
    for each output. Biases, normalisation layers and matrices that do not suit (depthwise, fewer than 4 rows or
    columns, or 128 times as long as wide) get AdamW's steps, with Nesterov's momentum likewise. The iteration runs in
    bfloat16.

    Args:
        lr: Learning rate, above 0.
        momentum: Decay of the running mean, 0 to 1.
        nesterov: Nesterov's momentum.
        num_iterations: Of Newton and Schulz, at least 1.
        betas: Of the AdamW steps: decay of the running means of the gradient and of its square, each 0 to 1.
        weight_decay: Fraction of a weight that is taken off at each step, times the learning rate.
    """

    def __init__(
        self,
        lr: float = 1e-3,
        momentum: float = 0.95,
        nesterov: bool = True,
        num_iterations: int = 5,
        betas: tuple[float, float] = (0.9, 0.95),
        weight_decay: float = 0.05,
    ) -> None:
        super().__init__(lr, weight_decay)
        check_fraction(momentum=momentum)
        check_betas(betas)
        if num_iterations < 1:
            raise ValueError(f"optimizer.num_iterations is {num_iterations}, expected at least 1")
        self.momentum = momentum
        self.nesterov = nesterov
        self.num_iterations = num_iterations
        self.betas = betas

    def build(self, groups: list[dict[str, Any]], fused: bool = False) -> torch.optim.Optimizer:
        """Builds timm's Muon, which has no fused kernel."""
        return TimmMuon(
            groups,
            lr=self.lr,
            momentum=self.momentum,
            nesterov=self.nesterov,
            ns_steps=self.num_iterations,
            ns_coefficients="original",
            betas=self.betas,
        )
