"""DTensors, which hold sharded weights (see `ssl_toolkit.runtime.fsdp`), as full or local tensors.

Each function returns plain tensors as they are.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, cast

from torch import Tensor, nn


@contextlib.contextmanager
def summon_full_params(task: nn.Module) -> Iterator[None]:
    """All weights of a task unsharded in every process, within the context: to compute with, not to train.

    The processes need not compute the same number of batches: they meet only at the beginning.
    """
    sharded: list[Any] = [module for module in task.modules() if hasattr(module, "set_reshard_after_forward")]
    if not sharded:
        yield
        return
    for module in sharded:
        module.set_reshard_after_forward(False, recurse=False)
        module.unshard()
    try:
        yield
    finally:
        for module in sharded:
            # the task's own weights are needed again at once, for the gradient
            module.set_reshard_after_forward(module is not task, recurse=False)
            module.reshard()


def full_tensor(tensor: Tensor) -> Tensor:
    """The full tensor of a DTensor; all processes have to ask for it."""
    return cast(Any, tensor).full_tensor() if hasattr(tensor, "full_tensor") else tensor


def local_tensor(tensor: Tensor) -> Tensor:
    """This process's shard of a DTensor."""
    return cast(Any, tensor).to_local() if hasattr(tensor, "to_local") else tensor


def full_state_dict(module: nn.Module) -> dict[str, Tensor]:
    """The state dict with full tensors; where they are sharded, all processes have to ask for it."""
    return {name: full_tensor(tensor) for name, tensor in module.state_dict().items()}
