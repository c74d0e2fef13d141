"""Which of the processes of a run this is, and how many cores it may use."""

from __future__ import annotations

import os

import torch.distributed as dist


def rank_and_world_size() -> tuple[int, int]:
    """Number of this process and of all processes; 0 and 1 outside `torch.distributed`."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def is_first_process() -> bool:
    """Whether this process speaks for all, also before they have found each other."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank() == 0
    ranks = (os.environ.get(name) for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK"))
    return int(next((rank for rank in ranks if rank is not None), "0")) == 0


def num_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
