"""Regression of the offsets between patches, and what a network that knows nothing reaches."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ssl_toolkit.losses.full_precision import full_precision

if TYPE_CHECKING:
    from jaxtyping import Float, Int64


def offset_regression(
    predicted: Float[Tensor, "batch pairs 2"],
    offsets: Int64[Tensor, "batch pairs 2"],
    unit: int,
    least: int,
    fraction: float,
) -> Float[Tensor, ""]:
    """Mean squared error of predicted offsets, over the pairs of patches that lie far enough apart.

    The sum is divided by the number of such pairs that is expected, not by the one that a batch happens to have: so the
    loss is a mean over the samples, whatever they are batched with, and its expectation is that of the mean over these
    pairs.

    Args:
        predicted: From the first to the second patch of each pair, down and right, in units; of any float type,
            computed in float32 at least.
        offsets: What they shall be, in pixels.
        unit: How many pixels are a unit: a patch's side.
        least: A pair counts if its patches are at least so many pixels apart, down or right.
        fraction: Of the pairs that are expected to count, above 0 (see `offset_moments`).
    """
    with torch.autocast(predicted.device.type, enabled=False):
        predicted = full_precision(predicted)
        squares = (predicted - offsets.to(predicted.dtype) / unit).square().mean(dim=2)
        counts = offsets.abs().amax(dim=2) >= least
        return (squares * counts).mean() / fraction


def offset_moments(room: int, least: int) -> tuple[float, float]:
    """What is to be expected of the offset of two patches, each anywhere in an image, down and right alike.

    Each of two places is uniform in 0 ... room, so that their difference d has ``room + 1 - |d|`` of ``(room + 1)^2``
    ways. The pairs that do not count are those that are near each other in both directions.

    Args:
        room: By how many pixels a place may vary.
        least: As for `offset_regression`, at most ``room``.

    Returns:
        The fraction of pairs that count, and the mean of their squared offset in one direction, in pixels squared:
        what a network loses that always says 0, the mean.
    """
    ways = {step: (room + 1 - abs(step)) / (room + 1) ** 2 for step in range(-room, room + 1)}
    near = {step: share for step, share in ways.items() if abs(step) < least}
    fraction = 1 - sum(near.values()) ** 2
    square, near_square = (sum(share * step**2 for step, share in each.items()) for each in (ways, near))
    return fraction, (square - near_square * sum(near.values())) / fraction
