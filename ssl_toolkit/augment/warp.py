"""Affine warps: rotation, shear and translation of each image by its own amount, sampled bilinearly.

What comes from outside of an image is mid-grey.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from ssl_toolkit.perf.device_constants import constant

if TYPE_CHECKING:
    from jaxtyping import Float

FILL = 0.5


def rotate(
    images: Float[Tensor, "batch channels height width"], degrees: Float[Tensor, " batch"]
) -> Float[Tensor, "batch channels height width"]:
    """Rotation: turns each image about its centre, counter-clockwise, by its angle (``[batch]``, in degrees)."""
    return warp(images, rotations(degrees))


def shear(
    images: Float[Tensor, "batch channels height width"], x: Float[Tensor, " batch"], y: Float[Tensor, " batch"]
) -> Float[Tensor, "batch channels height width"]:
    """Shear of each image, its top left corner in place: ``x`` moves a row left by so much for each row above it.

    Args:
        images: float ``[batch, channels, height, width]``.
        x: ``[batch]``: pixels a row.
        y: ``[batch]``: pixels a column.

    Returns:
        Tensor of the shape of ``images``.
    """
    return warp(images, shears(x, y, *images.shape[-2:]))


def translate(
    images: Float[Tensor, "batch channels height width"], x: Float[Tensor, " batch"], y: Float[Tensor, " batch"]
) -> Float[Tensor, "batch channels height width"]:
    """Translation: moves each image to the right by ``x`` and down by ``y`` pixels (both ``[batch]``)."""
    return warp(images, translations(x, y))


def rotations(degrees: Float[Tensor, " batch"]) -> Float[Tensor, "batch 2 3"]:
    """The matrices for `warp`."""
    angle = degrees * (math.pi / 180)
    cosine, sine, zero = torch.cos(angle), torch.sin(angle), torch.zeros_like(angle)
    return _matrices(cosine, -sine, zero, sine, cosine, zero)


def shears(
    x: Float[Tensor, " batch"], y: Float[Tensor, " batch"], height: int, width: int
) -> Float[Tensor, "batch 2 3"]:
    """The matrices for `warp` of images of that size."""
    one = torch.ones_like(x)
    return _matrices(one, x, x * (height / 2), y, one, y * (width / 2))


def translations(x: Float[Tensor, " batch"], y: Float[Tensor, " batch"]) -> Float[Tensor, "batch 2 3"]:
    """The matrices for `warp`."""
    one, zero = torch.ones_like(x), torch.zeros_like(x)
    return _matrices(one, zero, -x, zero, one, -y)


def _matrices(*values: Tensor) -> Tensor:
    return torch.stack(values, dim=-1).unflatten(-1, (2, 3))


def warp(
    images: Float[Tensor, "batch channels height width"], matrices: Float[Tensor, "batch 2 3"], fill: float = FILL
) -> Float[Tensor, "batch channels height width"]:
    """Affine warp: reads each pixel from another place, bilinearly.

    Args:
        images: float ``[batch, channels, height, width]``.
        matrices: ``[batch, 2, 3]``: the place that is read, as (x, y) in pixels from the centre of the image, is
            ``matrix @ (x, y, 1)`` of the place that is written.
        fill: The value outside of the images.

    Returns:
        Tensor of the shape of ``images``.
    """
    height, width = images.shape[-2:]
    # torch's places run from -1 to 1 over the height and over the width
    scale = constant((width / 2, height / 2, 1.0), images.device, images.dtype)
    matrices = matrices * scale / scale[:2, None]
    with torch.autocast(images.device.type, enabled=False):
        grid = F.affine_grid(matrices, list(images.shape), align_corners=False)
        return F.grid_sample(images - fill, grid, "bilinear", "zeros", align_corners=False).add_(fill)
