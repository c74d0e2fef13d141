"""Batches, from the data to the tasks: images as bytes, with the indices that key all randomness."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

_EXPECTED = (
    "expected images, (images, labels) or (images, labels, indices), with floats of shape [batch, targets] for labels "
    "where numbers are to be predicted, or the batches of ssl_toolkit.data.ImageData"
)
# what rounding in a resize may leave outside of [0, 1]
_MARGIN = 1e-3


class Images(NamedTuple):
    """A batch of images of possibly different sizes on one canvas.

    Attributes:
        pixels: uint8 tensor of shape ``[batch, channels, height, width]``. Each image lies in the top left corner of
            its canvas; what lies outside its size is zero and must not be read. Of a loader of the user's own they may
            be floats in [0, 1].
        sizes: int64 tensor of shape ``[batch, 2]``: the height and the width of each image in pixels.
    """

    pixels: Tensor
    sizes: Tensor


class Batch(NamedTuple):
    """One batch of a loader.

    Attributes:
        images: The images.
        indices: int64 tensor of shape ``[batch]``: the place of each image in its source. Together with the seed
            and the epoch it keys every random choice about the image.
        labels: int64 tensor of shape ``[batch]``: class numbers, -1 where there is no label. A pretext task
            reads it only if it has the trait ``labels``.
        epoch: The epoch the batch belongs to, counted from 0.
        targets: float32 tensor of shape ``[batch, targets]``: numbers to predict, NaN where one is not known; None
            without any.
        repeats: int64 tensor of shape ``[batch]``: how often each image has come before in the epoch; None where each
            comes once at most.
        weights: float32 tensor of shape ``[batch]``: how much each image counts in the loss of a transfer; None for
            alike.
        covariates: float32 tensor of shape ``[batch, covariates]``: numbers that are given with each image, NaN where
            one is not known; None without any.
    """

    images: Images
    indices: Tensor
    labels: Tensor
    epoch: int
    targets: Tensor | None = None
    repeats: Tensor | None = None
    weights: Tensor | None = None
    covariates: Tensor | None = None


def as_batch(given: Any, epoch: int, place: int) -> Batch:
    """The batch that a loader of the user's own stands for.

    Args:
        given: Images, or a tuple or list of images and labels, or of images, labels and indices: images of shape
            ``[batch, channels, height, width]``, uint8 or floats in [0, 1]; integer labels and indices of shape
            ``[batch]``. Labels that are floats of shape ``[batch, targets]`` are the numbers to predict.
        epoch: The epoch it belongs to.
        place: The place of its first image in the epoch, which no image of another batch of the epoch may have: it
            stands in for the indices where none are given.

    Raises:
        ValueError: It is anything else, in one line.
    """
    parts = [given] if isinstance(given, Tensor) else list(given) if isinstance(given, Sequence) else []
    if not 1 <= len(parts) <= 3 or not all(isinstance(each, Tensor) for each in parts):
        kinds = ", ".join(type(each).__name__ for each in parts)
        raise ValueError(f"the batch is a {type(given).__name__}{f' of {kinds}' if kinds else ''}; {_EXPECTED}")
    pixels, *others = parts
    _check_pixels(pixels)
    targets = None
    if others and others[0].is_floating_point() and others[0].ndim == 2 and len(others[0]) == len(pixels):
        targets = others[0].float()
        others[0] = torch.full((len(pixels),), -1)
    for name, each in zip(("labels", "indices"), others, strict=False):
        if each.shape != pixels.shape[:1] or each.is_floating_point() or each.dtype == torch.bool:
            raise ValueError(
                f"the {name} of the batch are {each.dtype} of shape {list(each.shape)}, expected integers of shape "
                f"[{len(pixels)}]"
            )
    labels = others[0].long() if others else torch.full((len(pixels),), -1)
    indices = others[1].long() if len(others) > 1 else torch.arange(place, place + len(pixels))
    sizes = torch.tensor(pixels.shape[2:]).expand(len(pixels), 2)
    device = pixels.device
    given_targets = None if targets is None else targets.to(device)
    return Batch(Images(pixels, sizes.to(device)), indices.to(device), labels.to(device), epoch, given_targets)


def _check_pixels(pixels: Tensor) -> None:
    found = f"the images of the batch are {pixels.dtype} of shape {list(pixels.shape)}"
    expected = "expected uint8, or floats in [0, 1], of shape [batch, channels, height, width]"
    if pixels.ndim != 4 or not pixels.numel() or not (pixels.dtype == torch.uint8 or pixels.is_floating_point()):
        raise ValueError(f"{found}, {expected}")
    # on a GPU the question would make it wait
    if pixels.is_floating_point() and pixels.device.type == "cpu":
        low, high = (float(each) for each in pixels.aminmax())
        if not (low >= -_MARGIN and high <= 1 + _MARGIN):
            raise ValueError(
                f"{found} with values from {low:.3g} to {high:.3g}, {expected}: leave out the normalisation, which a "
                "backbone does itself"
            )
