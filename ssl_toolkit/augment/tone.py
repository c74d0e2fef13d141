"""Tone operations of the automatic policies, with a separate amount for each image, equal to torchvision's.

All take float images ``[batch, channels, height, width]`` in [0, 1] and return such images.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from jaxtyping import Float, Num


def sharpness(
    images: Float[Tensor, "batch channels height width"], factors: Float[Tensor, " batch"]
) -> Float[Tensor, "batch channels height width"]:
    """Sharpness: moves each image, except its border, away from its smoothed self, and clamps.

    Args:
        images: Float images; those of less than three pixels a side stay as they are.
        factors: ``[batch]``, from 0: smoothed by a 3x3 kernel with 5 in its centre and 1 around; 1 changes nothing.

    Returns:
        Tensor of the shape of ``images``.
    """
    if min(images.shape[-2:]) < 3:
        return images.clone()
    result = images.clone()
    inner = result[..., 1:-1, 1:-1]
    smooth = (9 * F.avg_pool2d(images, 3, stride=1) + 4 * inner) / 13
    inner.copy_(torch.lerp(smooth, inner, factors[:, None, None, None]))
    return result.clamp_(0, 1)


def posterize(
    images: Float[Tensor, "batch channels height width"], bits: Num[Tensor, " batch"]
) -> Float[Tensor, "batch channels height width"]:
    """Posterization: keeps so many levels, 2 to the power of ``bits`` (``[batch]``, 1 to 8), each at its lower end."""
    levels = torch.exp2(bits.to(images.dtype))[:, None, None, None]
    return torch.minimum((images * levels).floor_().clamp_(min=0), levels - 1) / levels


def solarize_above(
    images: Float[Tensor, "batch channels height width"], thresholds: Float[Tensor, " batch"]
) -> Float[Tensor, "batch channels height width"]:
    """Solarization: inverts the values at or above the image's threshold (``[batch]``)."""
    return torch.where(images >= thresholds[:, None, None, None], 1 - images, images)


def autocontrast(images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch channels height width"]:
    """Autocontrast: stretches each channel of each image to [0, 1]; a channel of one value stays as it is."""
    lowest, highest = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    flat = highest == lowest
    scale = torch.where(flat, 1.0, 1 / torch.where(flat, 1.0, highest - lowest))
    return ((images - torch.where(flat, 0.0, lowest)) * scale).clamp_(0, 1)


def equalize(images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch channels height width"]:
    """Histogram equalization of each channel over 256 levels, as Pillow does it.

    A channel with less than 255 pixels below its highest level stays as it is.
    """
    # torchvision's rounding to bytes
    levels = (images * (256 - 1e-3)).to(torch.uint8).flatten(2).long()
    counts = torch.zeros(*levels.shape[:2], 256, dtype=torch.int64, device=images.device)
    counts.scatter_add_(2, levels, torch.ones_like(levels))
    highest = counts.gather(2, levels.amax(2, keepdim=True))
    step = torch.div(levels.shape[2] - highest, 255, rounding_mode="floor")
    below = counts.cumsum(2) - counts
    table = torch.div(below + torch.div(step, 2, rounding_mode="floor"), step.clamp(min=1), rounding_mode="floor")
    table = torch.where(step > 0, table.clamp(max=255), torch.arange(256, device=images.device))
    return (table.gather(2, levels).to(images.dtype) / 255).view_as(images)
