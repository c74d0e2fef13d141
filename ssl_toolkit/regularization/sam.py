"""Sharpness-aware minimisation."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ssl_toolkit.regularization.base import Regularizer, Result
from ssl_toolkit.step import StepContext


class SAM(Regularizer):
    """Sharpness-aware minimisation: the gradient of the worst loss nearby, for flat minima (Foret et al. 2021, arXiv
    2010.01412).

    Each batch is computed twice: its gradient at the weights says where the loss is worst within a small ball
    (equation 2), and the gradient there is what the optimizer gets (equation 3). Several processes, and accumulated
    batches, each take the worst case of their images: the paper's m-sharpness (section 4.1), which generalises
    better than that of the whole batch. Dropout drops the same both times, and BatchNorm's running statistics are those
    of the first.

    Args:
        rho: Radius of the ball, above 0 (the paper: 0.05).
        adaptive: Measure the ball in the units of each weight (Kwon et al. 2021, arXiv 2102.11600, equation 4), with a
            radius of about 0.5 to 2.
    """

    def __init__(self, rho: float = 0.05, adaptive: bool = False) -> None:
        if rho <= 0:
            raise ValueError(f"regularizers: rho is {rho}, expected a number above 0")
        self.rho = rho
        self.adaptive = adaptive

    def around(self, task: Any, context: StepContext, compute: Callable[[], Result]) -> Result:
        """Moves to the worst point nearby, and computes the loss there."""
        parameters = [parameter for parameter in task.parameters() if parameter.requires_grad]
        device = parameters[0].device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            loss, *_ = cast(Any, compute())
            gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        self._move(task, parameters, gradients)
        with _running_statistics_kept(task):
            return compute()

    @torch.no_grad()
    def _move(self, task: Any, parameters: list[nn.Parameter], gradients: tuple[Tensor | None, ...]) -> None:
        pairs = [(each, gradient) for each, gradient in zip(parameters, gradients, strict=True) if gradient is not None]
        scales = [weight.abs() if self.adaptive else torch.ones_like(weight) for weight, _ in pairs]
        scaled = [scale * gradient for scale, (_, gradient) in zip(scales, pairs, strict=True)]
        length = torch.stack([each.float().norm() for each in scaled]).norm() + 1e-12
        task.undo_after_backward(partial(_put_back, [(weight, weight.detach().clone()) for weight, _ in pairs]))
        for (weight, _), scale, step in zip(pairs, scales, scaled, strict=True):
            weight.add_(scale * step * (self.rho / length))
        # else autocast would go on with its copies of the weights as they were
        torch.clear_autocast_cache()


@torch.no_grad()
def _put_back(kept: list[tuple[Tensor, Tensor]]) -> None:
    """The weights as they were, to the last bit."""
    for weight, value in kept:
        weight.copy_(value)


@contextlib.contextmanager
def _running_statistics_kept(task: nn.Module) -> Iterator[None]:
    """BatchNorm's running statistics stay as they are."""
    norms = [module for module in task.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    kept = [(norm, norm.momentum, cast(Tensor, norm.num_batches_tracked).clone()) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum, num_batches in kept:
            norm.momentum = momentum
            norm.num_batches_tracked = num_batches
