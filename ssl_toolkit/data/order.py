"""Sample order of a split: a pure function of (seed, epoch)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ssl_toolkit.random import number, sample_order


class Groups(NamedTuple):
    """Which images lie together, where reading them one group after another is much faster.

    Attributes:
        of: int32 array ``[num]``: the group of each image.
        window: How many groups are shuffled together.
    """

    of: NDArray[np.int32]
    window: int


def groups_of(groups: Groups | None, indices: NDArray[np.int64]) -> Groups | None:
    """The groups of some images, renumbered from 0; None if all of their groups are in one window."""
    if groups is None:
        return None
    of = groups.of[indices]
    return Groups(of, groups.window) if np.count_nonzero(np.bincount(of)) > groups.window else None


def epoch_order(seed: int, epoch: int, num: int, groups: Groups | None = None) -> NDArray[np.int64]:
    """The order of the images in an epoch.

    With groups: these are shuffled and divided into windows, and the images of each window are shuffled; the windows
    follow one another. So two images that are far apart in the source may be in one batch, but in each epoch the images
    of a batch come from ``window`` groups (or twice as many, where two windows meet). With one window this is
    `sample_order`.

    Args:
        seed: Of the shuffling.
        epoch: Each has its own order.
        num: The number of images.
        groups: Of these images.

    Returns:
        int64 permutation of ``0 .. num - 1``.
    """
    order = sample_order(seed, epoch, num).numpy()
    if groups is None:
        return order
    present = np.flatnonzero(np.bincount(groups.of))
    generator = torch.Generator().manual_seed(number("groups", seed, epoch))
    places = np.zeros(present[-1] + 1, dtype=np.int64)
    places[present] = torch.randperm(len(present), generator=generator).numpy()
    windows = places // groups.window
    # NumPy sorts small integers by counting, seven times as fast as larger ones
    windows = windows.astype(np.uint16 if windows.max() < 2**16 else np.int64)
    # what was in random order stays so within each window
    return order[np.argsort(windows[groups.of[order]], kind="stable")]
