"""Distributed training: ranks, collectives, synchronised batch normalisation, DTensors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ssl_toolkit.lazy import lazy_names

if TYPE_CHECKING:
    from ssl_toolkit.distributed.collectives import (
        all_reduce_max,
        all_reduce_mean,
        all_reduce_sum,
        gather,
        standardize,
    )
    from ssl_toolkit.distributed.sync_batchnorm import SyncBatchNorm, convert_sync_batchnorm

__all__ = [
    "SyncBatchNorm",
    "all_reduce_max",
    "all_reduce_mean",
    "all_reduce_sum",
    "convert_sync_batchnorm",
    "gather",
    "standardize",
]

# the command line asks for its rank before anything needs torch
_COLLECTIVES = ("all_reduce_max", "all_reduce_mean", "all_reduce_sum", "gather", "standardize")
__getattr__ = lazy_names(
    __name__,
    {
        **dict.fromkeys(_COLLECTIVES, "collectives"),
        **dict.fromkeys(("SyncBatchNorm", "convert_sync_batchnorm"), "sync_batchnorm"),
    },
)
