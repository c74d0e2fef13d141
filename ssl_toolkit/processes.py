"""Which of the processes of a run this is, how many there are, and how many cores each may use."""

from __future__ import annotations

import os
import sys
from types import ModuleType
from typing import TypeVar

T = TypeVar("T")


def _distributed() -> ModuleType | None:
    """``torch.distributed`` where it is initialised; a process that has not even imported it is alone."""
    module = sys.modules.get("torch.distributed")
    return module if module and module.is_available() and module.is_initialized() else None


def rank() -> int:
    """The number of this process, 0 where there is one."""
    processes = _distributed()
    return processes.get_rank() if processes else 0


def world_size() -> int:
    """The number of processes, 1 where ``torch.distributed`` is not initialised."""
    processes = _distributed()
    return processes.get_world_size() if processes else 1


def is_first_process() -> bool:
    """Whether this process speaks and writes for all, also before they have found each other."""
    if _distributed():
        return rank() == 0
    ranks = (os.environ.get(name) for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK"))
    return int(next((rank for rank in ranks if rank is not None), "0")) == 0


def from_first_process(value: T) -> T:
    """What the first process has for this value, on every process."""
    processes = _distributed()
    if not processes or world_size() == 1:
        return value
    values = [value]
    processes.broadcast_object_list(values)
    return values[0]


def num_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
