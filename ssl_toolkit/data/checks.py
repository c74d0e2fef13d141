"""Argument checks of `ImageData`, and agreement checks between processes, with errors of one line."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ssl_toolkit.distributed.ranks import check_agreement, world_size
from ssl_toolkit.errors import counted, nearest


def check_below_one(name: str, value: float) -> None:
    """Raises a ValueError unless ``0 <= value < 1``."""
    if not 0 <= value < 1:
        raise ValueError(f"data.{name} must be at least 0 and below 1, got {value}")


def check_at_least_one(**counts: int | None) -> None:
    """Raises a ValueError if a count that is given is less than 1."""
    for name, count in counts.items():
        if count is not None and count < 1:
            raise ValueError(f"data.{name} must be at least 1, got {count}")


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Raises a ValueError with the nearest choice if the value is none of them."""
    if value not in choices:
        raise ValueError(f"data.{name} must be one of {', '.join(choices)}, got {value!r}{nearest(value, choices)}")


def check_same_in_all_processes(indices: NDArray[np.int64], labels: Tensor, noun: str) -> None:
    """Raises a ValueError in every process if they have not the same samples to train on.

    They would have other batches, samples that several of them train on, and in the end not as many batches.

    Args:
        indices: Of the training split.
        labels: Of these samples.
        noun: What the samples are called.
    """
    if world_size() > 1:
        checksum = zlib.crc32(labels.numpy().data, zlib.crc32(indices.data))
        check_agreement(
            f"{len(indices)} {noun} (checksum {checksum:08x})",
            f"the processes do not have the same {noun} to train on; let all of them see the same files and be able to "
            "read each",
        )


def rest_of_epoch(num: int, global_batch: int, noun: str) -> str | None:
    """What an epoch of the training leaves out, in one line; None if it is nothing.

    Args:
        num: Training samples.
        global_batch: Samples in a batch of all processes together.
        noun: What the samples are called.
    """
    batches, left = divmod(num, global_batch)
    if not (batches and left):
        return None
    return (
        f"each epoch: {counted(batches, 'batches')} of {global_batch:,}; {left:,} of the {counted(num, noun)} "
        "do not fill another and "
        "are left out, each time others"
    )
