"""Class balance: training images drawn so that small classes come more often."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from ssl_toolkit.random import fold_in, number, sample_keys, uniform


def check_class_balance(balance: float, labels: NDArray[np.int64], noun: str) -> None:
    """Raises a ValueError where images cannot be drawn by their class, because some have none."""
    if balance and (without := int((labels < 0).sum())):
        raise ValueError(
            f"data.class_balance is {balance:g}, but {without:,} of {len(labels):,} training {noun} have no class; set "
            "data.labels: folder, name a label column in data.columns, or leave it out"
        )


def balanced_draw(labels: NDArray[np.int64], balance: float, seed: int, epoch: int) -> NDArray[np.int64]:
    """The images of an epoch, in no order: as many as there are, some several times and some not at all.

    Of ``N`` images those of a class of ``n`` images are drawn about ``N n^(1 - balance) / sum over classes`` times: a
    number that is rounded up or down by chance, so that its mean over the epochs is that. Within a class no image comes
    twice more often than another: those that come once more are drawn anew in each epoch.

    Args:
        labels: int64 array of shape ``[num]``: the class of each image, at least 0.
        balance: From 0 (classes as they are) to 1 (all equally often).
        seed: Of the order.
        epoch: Counted from 0.

    Returns:
        Sorted int64 array of shape ``[num]``: ``place + num * repeat``, where ``repeat`` is 0 where an image comes for
        the first time in the epoch, 1 for the second time, and so on. Pure in its arguments.
    """
    num, sizes = len(labels), np.bincount(labels)
    shares = np.where(sizes > 0, sizes.astype(np.float64) ** (1 - balance), 0.0)
    ends = np.cumsum(shares) * (num / shares.sum())
    keys = sample_keys(number("class balance", seed), epoch, torch.arange(num))
    start = float(uniform(fold_in(keys[:1], "start")))
    # systematic sampling: each number is rounded up or down, and their sum is that of all
    bounds = np.floor(np.concatenate([[0.0], ends[:-1], [float(num)]]) + start).astype(np.int64)
    wanted = np.diff(bounds)
    times, rest = np.divmod(wanted, np.maximum(sizes, 1))
    # the place of each image in a random order of its class: where it is below the rest, the image comes once more
    chance = uniform(fold_in(keys, "image")).numpy()
    order = np.lexsort((chance, labels))
    places = np.empty(num, dtype=np.int64)
    places[order] = np.arange(num) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    counts = times[labels] + (places < rest[labels])
    drawn = np.repeat(np.arange(num), counts)
    repeats = np.arange(len(drawn)) - np.repeat(np.cumsum(counts) - counts, counts)
    return drawn + num * repeats
