"""Batches, from the data to the tasks: images as bytes, with the indices that key all randomness."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Images(NamedTuple):
    """A batch of images of possibly different sizes on one canvas.

    Attributes:
        pixels: uint8 tensor of shape ``[batch, channels, height, width]``. Each image lies in the top left corner of
            its canvas; what lies outside its size is zero and must not be read.
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
        labels: int64 tensor of shape ``[batch]``: class numbers, -1 where there is no label. Pretext tasks never
            read it.
        epoch: The epoch the batch belongs to, counted from 0.
    """

    images: Images
    indices: Tensor
    labels: Tensor
    epoch: int
