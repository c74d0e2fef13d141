"""Boxes for cropping and erasing, one for each image: ``[batch, 4]`` (top, left, height, width)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ssl_toolkit.random import fold_in, streams, uniform

if TYPE_CHECKING:
    from jaxtyping import Float, Num

NUM_TRIES = 10


def random_resized_crop_boxes(
    sizes: Tensor,
    keys: Tensor,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Tensor:
    """Random crop boxes, drawn as torchvision's ``RandomResizedCrop`` does (Szegedy et al. 2015).

    The area is uniform in ``scale``, the logarithm of width / height is uniform in the logarithm of ``ratio``, the
    corners are integers. Of ten draws the first one that fits is taken; if none fits, the largest centred box with an
    allowed ratio.

    Args:
        sizes: ``[batch, 2]``: heights and widths in pixels.
        keys: int64 ``[batch]``: keys of `ssl_toolkit.random`.
        scale: Range of the box's area as a fraction of the image's, within (0, 1].
        ratio: Range of width / height, above 0.

    Returns:
        float32 tensor of shape ``[batch, 4]``.
    """
    height, width = sizes.to(torch.float32).unsqueeze(-1).unbind(1)
    fractions, logarithms = uniform(streams(keys, "area", "ratio"), NUM_TRIES).unbind(1)
    area = height * width * (scale[0] + (scale[1] - scale[0]) * fractions)
    shape = torch.exp(math.log(ratio[0]) + math.log(ratio[1] / ratio[0]) * logarithms)
    tries_width, tries_height = torch.sqrt(area * shape).round(), torch.sqrt(area / shape).round()
    fits = (tries_width >= 1) & (tries_width <= width) & (tries_height >= 1) & (tries_height <= height)
    first = fits.to(torch.uint8).argmax(1, keepdim=True)
    some = fits.any(1, keepdim=True)

    fallback_width = torch.minimum(width, (height * ratio[1]).round())
    fallback_height = torch.minimum(height, (width / ratio[0]).round())
    box_width = torch.where(some, tries_width.gather(1, first), fallback_width)
    box_height = torch.where(some, tries_height.gather(1, first), fallback_height)

    place = uniform(fold_in(keys, "place"), 2)
    top, left = height - box_height, width - box_width
    top = torch.where(some, torch.floor(place[:, :1] * (top + 1)), torch.floor(top / 2))
    left = torch.where(some, torch.floor(place[:, 1:] * (left + 1)), torch.floor(left / 2))
    return torch.cat([top, left, box_height, box_width], dim=1)


def centre_boxes(sizes: Num[Tensor, "batch 2"], fraction: float = 1.0) -> Float[Tensor, "batch 4"]:
    """Centre crop boxes: the centred square of each image.

    Args:
        sizes: ``[batch, 2]``: heights and widths in pixels.
        fraction: Side of the square as a fraction of the short side, within (0, 1].

    Returns:
        float32 tensor of shape ``[batch, 4]`` with integer values.
    """
    sizes = sizes.to(torch.float32)
    side = (sizes.amin(1, keepdim=True) * fraction).round().clamp(min=1)
    return torch.cat([torch.floor((sizes - side) / 2), side, side], dim=1)


def random_erasing_boxes(
    sizes: Tensor,
    keys: Tensor,
    scale: tuple[float, float] = (0.02, 0.33),
    ratio: tuple[float, float] = (0.3, 3.3),
) -> Tensor:
    """Random erasing boxes (Zhong et al. 2017, arXiv 1708.04896), drawn as `random_resized_crop_boxes`.

    Args:
        sizes: ``[batch, 2]``: heights and widths in pixels.
        keys: int64 ``[batch]``: keys of `ssl_toolkit.random`.
        scale: Range of the box's area as a fraction of the image's, within (0, 1].
        ratio: Range of width / height, above 0.

    Returns:
        float32 tensor of shape ``[batch, 4]``.
    """
    return random_resized_crop_boxes(sizes, keys, scale, ratio)
