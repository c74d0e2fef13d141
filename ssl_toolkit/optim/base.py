"""`OptimizerSpec`: the base class of optimizers in a configuration."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor

from ssl_toolkit.distributed.dtensor import local_tensor


class OptimizerSpec(ABC):
    """Base class of optimizers in a configuration: the settings, without the parameters.

    Attributes:
        lr: Learning rate, before the schedule's factor.
        weight_decay: Weight decay of the parameters that are decayed.
        shardable: Whether it works where each process holds a part of each weight (``trainer.strategy: fsdp2``).
    """

    shardable: ClassVar[bool] = False

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


def check_fraction(**values: float) -> None:
    """Raises a ValueError for a number that is not at least 0 and below 1, such as the decay of a running mean."""
    for name, value in values.items():
        if not 0 <= value < 1:
            raise ValueError(f"optimizer.{name} is {value}, expected at least 0 and less than 1")


def check_betas(betas: tuple[float, float]) -> None:
    """Raises a ValueError for decays of the running means that are not at least 0 and below 1."""
    if not all(0 <= beta < 1 for beta in betas):
        raise ValueError(f"optimizer.betas is {betas}, expected two numbers of at least 0 and less than 1")


def adapt_matrices(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Groups for timm's layer-wise optimizers: the parameters that are decayed are adapted, and no others.

    timm itself adapts where the decay is not 0, so that without any decay LARS would silently be plain SGD.
    """
    return [{**group, "always_adapt": group["decayed"]} for group in groups]


@torch.no_grad()
def match_layout(optimizer: torch.optim.Optimizer) -> None:
    """Matches the memory layout of loaded optimizer state to that of its parameter.

    A fused kernel goes through the memory of both as it lies, and so would mix up the numbers if a run that was saved
    with its weights in another memory format, or in parts, is resumed.
    """
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if not isinstance(value, Tensor) or value.shape != parameter.shape:
                continue
            if local_tensor(value).stride() != local_tensor(parameter).stride():
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
