"""Trial copies of a task, which leave the task as it is."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ssl_toolkit.losses.full_precision import full_precision
from ssl_toolkit.task import Task


def copy_of(task: Task) -> Any:
    """A copy that shares nothing with the task but the trainer, in training mode, without regularizers."""
    trainer, task._trainer = task._trainer, None
    try:
        copied = copy.deepcopy(task)
    finally:
        task._trainer = trainer
    copied._trainer = trainer
    copied.regularizers = []
    return copied.train()


def still(task: Task) -> Any:
    """A deterministic copy, whose loss is the same at each call: no dropout, and the same keys."""
    copied = copy_of(task)
    for module in copied.modules():
        # timm has its own dropout modules beside torch's: DropPath, DropBlock2d
        if "Drop" in type(module).__name__:
            module.eval()
            module.train = _stays  # a task may put all of its modules into training mode
        elif isinstance(module, (nn.RNNBase, nn.MultiheadAttention)):
            module.dropout = 0.0
    return copied


def open_branches(task: Any) -> Any:
    """Sets the scales of normalisation layers that are all 0 to 1, and returns the task.

    A residual branch that ends in such a scale (Goyal et al. 2017, arXiv 1706.02677, section 5.1) passes no gradient at
    first, and rightly so.
    """
    for module in task.modules():
        scale = getattr(module, "weight", None)
        if isinstance(scale, nn.Parameter) and scale.ndim == 1 and not scale.any():
            nn.init.ones_(scale)
    return task


def loss_of(task: Any, batch: Any) -> Tensor:
    """The loss of a batch in training mode, with what it draws the same at each call."""
    torch.manual_seed(0)
    return full_precision(task.compute(batch).loss)


def weights_of(task: nn.Module) -> dict[str, nn.Parameter]:
    """The trainable parameters of two or more dimensions, by name."""
    named = task.named_parameters()
    return {name: parameter for name, parameter in named if parameter.requires_grad and parameter.ndim > 1}


def without_changing_buffers(task: nn.Module, compute: Callable[[], Any]) -> Any:
    """Computes something, and puts back what it did to running statistics."""
    kept = [(buffer, buffer.detach().clone()) for buffer in task.buffers()]
    try:
        return compute()
    finally:
        with torch.no_grad():
            for buffer, value in kept:
                buffer.copy_(value)


def _stays(mode: bool = True) -> None:
    """In place of `nn.Module.train`."""
