"""Rank and world size of a run's processes, and how many cores each may use."""

from __future__ import annotations

import os
import sys
from types import ModuleType
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")

_THREADS = "OMP_NUM_THREADS"
_CHOSEN_THREADS = os.environ.get(_THREADS)


def _distributed() -> ModuleType | None:
    """``torch.distributed`` where it is initialised; a process that has not even imported it is alone."""
    module = sys.modules.get("torch.distributed")
    return module if module and module.is_available() and module.is_initialized() else None


def rank() -> int:
    """The rank of this process, 0 where it is alone."""
    processes = _distributed()
    return processes.get_rank() if processes else 0


def world_size() -> int:
    """The number of processes, 1 where ``torch.distributed`` is not initialised."""
    processes = _distributed()
    return processes.get_world_size() if processes else 1


def is_rank_zero() -> bool:
    """Whether this process is rank zero, which prints and writes for all; also before they have joined."""
    return _told_rank() == 0


def _told_rank() -> int:
    """The rank of this process as the launcher has set it, also before the processes have joined."""
    if _distributed():
        return rank()
    ranks = (os.environ.get(name) for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK"))
    return int(next((rank for rank in ranks if rank is not None), "0"))


class Launched(NamedTuple):
    """This process among those that a launcher has started.

    Attributes:
        rank: Its number.
        world_size: How many there are.
        local_rank: Its number among those of this machine.
    """

    rank: int
    world_size: int
    local_rank: int


def launched() -> Launched:
    """This process among those of torchrun or of a step of SLURM, which need not have joined; or one that is alone.

    Raises:
        ValueError: The environment gives a rank that is none of so many processes.
    """
    if _distributed():
        return Launched(rank(), world_size(), int(os.environ.get("LOCAL_RANK", "0")))
    # SLURM_NTASKS is also set in a batch script, which is one process
    for names in (
        ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
        ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),
    ):
        if names[0] in os.environ and names[1] in os.environ:
            number, num, local = (int(os.environ.get(name, "0")) for name in names)
            if not 0 <= number < num:
                raise ValueError(f"{names[0]} is {number}, but {names[1]} is {num}; start the processes by torchrun")
            return Launched(number, num, local)
    return Launched(0, 1, 0)


def from_rank_zero(value: T) -> T:
    """Broadcasts rank zero's value to every process."""
    processes = _distributed()
    if not processes or world_size() == 1:
        return value
    values = [value]
    processes.broadcast_object_list(values)
    return values[0]


def check_agreement(value: Any, problem: str) -> None:
    """Compares a small value with those of the other processes; all have to call this at the same point.

    Args:
        value: Plain data.
        problem: What to say if they differ; what each process has is added.

    Raises:
        ValueError: In every process, if the values differ.
    """
    processes = _distributed()
    if not processes or world_size() == 1:
        return
    values = [value] * world_size()
    processes.all_gather_object(values, value)
    if any(each != values[0] for each in values):
        shown = ", ".join(f"{each} in rank {number}" for number, each in enumerate(values))
        raise ValueError(f"{problem}: {shown}")


def place() -> str:
    """``"rank 1 of 4"``, also before the processes have joined; empty for one that is alone."""
    num = world_size() if _distributed() else int(os.environ.get("WORLD_SIZE") or 1)
    return f"rank {_told_rank()} of {num}" if num > 1 else ""


def use_threads(num: int | None) -> None:
    """Sets the number of threads for operations on the CPU, in this process and those that it starts.

    Args:
        num: At most as many as there are cores are used: with more, each operation waits for some that have no turn.
            None leaves everything as it is.

    Raises:
        ValueError: The number is below 1.
    """
    if num is None:
        return
    if num < 1:
        raise ValueError(f"threads is {num}, expected 1 or more")
    import torch

    num = min(num, num_cores())
    torch.set_num_threads(num)
    # Lightning divides the cores among processes that it starts, unless this is set
    os.environ[_THREADS] = str(num)


def threads_are_chosen() -> bool:
    """Whether the environment says how many threads there shall be, as it was before this program changed it."""
    return _CHOSEN_THREADS is not None


def num_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
