"""Sharded weights (see `ssl_toolkit.runtime.fsdp`) seen as a whole; others are left as they are."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, cast

from torch import Tensor, nn


@contextlib.contextmanager
def whole_weights(task: nn.Module) -> Iterator[None]:
    """Has all weights of a task whole in every process meanwhile, to compute with and not to train.

    The processes need not compute the same number of batches: they meet only here, at the beginning.
    """
    divided: list[Any] = [module for module in task.modules() if hasattr(module, "set_reshard_after_forward")]
    if not divided:
        yield
        return
    for module in divided:
        module.set_reshard_after_forward(False, recurse=False)
        module.unshard()
    try:
        yield
    finally:
        for module in divided:
            # the task itself needs its own again at once, for the gradient
            module.set_reshard_after_forward(module is not task, recurse=False)
            module.reshard()


def whole(tensor: Tensor) -> Tensor:
    """A tensor as a whole; where it is in parts, all processes have to ask for it."""
    return cast(Any, tensor).full_tensor() if hasattr(tensor, "full_tensor") else tensor


def own_part(tensor: Tensor) -> Tensor:
    """This process's part of a tensor; all of it, if it is not in parts."""
    return cast(Any, tensor).to_local() if hasattr(tensor, "to_local") else tensor


def whole_state(module: nn.Module) -> dict[str, Tensor]:
    """The state dict with whole tensors; where they are in parts, all processes have to ask for it."""
    return {name: whole(tensor) for name, tensor in module.state_dict().items()}
