"""Bootstrap over images of figures that are made of sums over images, for many networks on the same draws."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ssl_toolkit.evaluation.intervals import Interval

if TYPE_CHECKING:
    from jaxtyping import Float, Int64, Num

# of how often each image comes in some draws
_BYTES = 1 << 26


def resampled_sums(
    counts: Sequence[Int64[Tensor, "images 3 classes"]], *, num_draws: int = 1000, seed: int = 0
) -> list[Float[Tensor, "draws 3 classes"]]:
    """Sums over images drawn with replacement: of as many as there are, the same ones for all counts.

    The draws are those of `ssl_toolkit.evaluation.bootstrap_interval`; a matrix product makes the sums of many at once.

    Args:
        counts: For each network counts by image, equally many images in the same order.
        num_draws: Number of draws.
        seed: Of the draws.

    Returns:
        Exact sums, in float64.
    """
    num, generator = len(counts[0]), np.random.default_rng(seed)
    at_once = max(1, min(num_draws, _BYTES // (8 * num)))
    parts: list[list[Tensor]] = [[] for _ in counts]
    for start in range(0, num_draws, at_once):
        draws = range(start, min(start + at_once, num_draws))
        times = np.stack([np.bincount(generator.integers(0, num, num), minlength=num) for _ in draws])
        for of, each in zip(parts, counts, strict=True):
            sums = torch.from_numpy(times).double() @ each.flatten(1).double()
            of.append(sums.unflatten(1, each.shape[1:]))
    return [torch.cat(each) for each in parts]


def miou_of(
    sums: Num[Tensor, "*draws 3 classes"], whole: Num[Tensor, "3 classes"] | None = None
) -> Float[Tensor, "*draws"]:
    """Mean intersection over union: of pixels that are right, that are or are taken for a class, and that are of it.

    Args:
        sums: These.
        whole: The same of all images, of which the sums are draws. A class that a draw lacks keeps its figure of all
            images: the mean over those classes that are left would be that of easier images. Classes that have no
            pixel at all do not count.
    """
    right, union, truth = sums.double().unbind(dim=-2)
    of_whole = torch.full_like(right, math.nan) if whole is None else _iou(whole.double())
    return (right / union).where(truth > 0, of_whole).nanmean(dim=-1)


def _iou(sums: Tensor) -> Tensor:
    right, union, truth = sums.unbind(dim=-2)
    return (right / union).where(truth > 0, math.nan)


def accuracy_of(sums: Num[Tensor, "*draws 3 classes"]) -> Float[Tensor, "*draws"]:
    """The share of pixels that are right, of the same."""
    right, _, truth = sums.double().unbind(dim=-2)
    return right.sum(dim=-1) / truth.sum(dim=-1)


def percentile_interval(value: Float[Tensor, ""], draws: Float[Tensor, " draws"]) -> Interval:
    """A figure with the 95 % percentile interval of those of the draws; draws without a figure do not count."""
    figures = draws[~draws.isnan()].numpy()
    low, high = np.quantile(figures, [0.025, 0.975]) if len(figures) else (math.nan, math.nan)
    return Interval(float(value), float(low), float(high))
