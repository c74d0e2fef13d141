"""Muon: steps whose singular values are all equal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import timm.optim.muon as timm_muon
import torch

from ssl_toolkit.optim.base import OptimizerSpec, check_betas, check_fraction
from ssl_toolkit.perf.bfloat16 import has_native_bf16


class Muon(OptimizerSpec):
    """Muon: a running mean of the gradients, made orthogonal by Newton and Schulz's iteration (Jordan et al. 2024).

    https://kellerjordan.github.io/posts/muon/; the step's length is scaled to that of AdamW, so that AdamW's rate and
    decay serve (Liu et al. 2025, arXiv 2502.16982, equation 4). The kernel of a convolution is a matrix with a row
    for each output. Biases, normalisation layers and matrices that do not suit (depthwise, fewer than 4 rows or
    columns, or 128 times as long as wide) get AdamW's steps, with Nesterov's momentum likewise. The iteration runs in
    bfloat16, and in float32 on a processor that would emulate it (47 times as fast there for 256 rows).

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
        return _Muon(
            groups,
            lr=self.lr,
            momentum=self.momentum,
            nesterov=self.nesterov,
            ns_steps=self.num_iterations,
            ns_coefficients="original",
            betas=self.betas,
        )


class _Muon(timm_muon.Muon):
    """timm's Muon, whose iteration has no setting for its precision."""

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        with _native_precision(self.param_groups[0]["params"][0].device):
            return super().step(closure)


@contextmanager
def _native_precision(device: torch.device) -> Iterator[None]:
    """timm's iteration in float32 where bfloat16 is emulated."""
    iteration = timm_muon.zeropower_via_newtonschulz
    if device.type == "cpu" and not has_native_bf16(device):
        timm_muon.zeropower_via_newtonschulz = partial(iteration, dtype=torch.float32)
    try:
        yield
    finally:
        timm_muon.zeropower_via_newtonschulz = iteration
