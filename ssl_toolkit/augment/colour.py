"""Colour operations with a separate factor for each image, equal to torchvision's on float images.

All take float images ``[batch, channels, height, width]`` in [0, 1] and return such images.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

GRAY_WEIGHTS = (0.2989, 0.587, 0.114)


def brightness(
    images: Float[Tensor, "batch channels height width"], factors: Float[Tensor, " batch"]
) -> Float[Tensor, "batch channels height width"]:
    """Brightness: multiplies each image by its factor (``[batch]``, from 0: black; 1 changes nothing) and clamps."""
    return (images * _spread(factors)).clamp_(0, 1)


def contrast(
    images: Float[Tensor, "batch channels height width"], factors: Float[Tensor, " batch"]
) -> Float[Tensor, "batch channels height width"]:
    """Contrast: moves each image away from its mean grey, and clamps.

    Args:
        images: Float images with any number of channels; where it is not 3, the mean of all values is the grey.
        factors: ``[batch]``, from 0: uniform grey; 1 changes nothing.

    Returns:
        Tensor of the shape of ``images``.
    """
    mean = gray_level(images).mean(dim=(1, 2, 3), keepdim=True)
    return torch.lerp(mean, images, _spread(factors)).clamp_(0, 1)


def saturation(
    images: Float[Tensor, "batch channels height width"], factors: Float[Tensor, " batch"]
) -> Float[Tensor, "batch channels height width"]:
    """Saturation: moves each pixel away from its grey, and clamps.

    Args:
        images: Float images with 3 channels.
        factors: ``[batch]``, from 0: grey; 1 changes nothing.

    Returns:
        Tensor of the shape of ``images``.
    """
    check_colours(images, "saturation")
    return torch.lerp(gray_level(images), images, _spread(factors)).clamp_(0, 1)


def hue(
    images: Float[Tensor, "batch channels height width"], shifts: Float[Tensor, " batch"]
) -> Float[Tensor, "batch channels height width"]:
    """Hue: turns the hue of each image in HSV space.

    Args:
        images: Float images with 3 channels.
        shifts: ``[batch]``: fractions of a full turn, from -0.5 to 0.5; 1/3 makes red green.

    Returns:
        Tensor of the shape of ``images``.
    """
    check_colours(images, "hue")
    red, green, blue = images.unbind(1)
    lowest = images.amin(1)
    spread = images.amax(1).sub_(lowest)
    # the hue in sixths of a turn from red, from -3 to 3. Moved to [0, 1], one channel is 0 and one is 1, so that
    # green + blue - red + 1 is the turn by way of green, and the turn by way of blue is that with a minus
    turn = (green - red).add_(blue).sub_(lowest).div_(spread.clamp(min=1e-20)).add_(1)
    turn = turn.copysign_(green - blue).add_(6 * shifts.to(images.dtype)[:, None, None])
    # over the turn, each channel is a trapezoid between the lowest and the highest, even and of period 6
    turns = (turn[:, None] - torch.arange(0, 6, 2, device=images.device)[:, None, None]).abs_()
    fraction = turns.sub_(3).abs_().sub_(3).abs_().neg_().add_(2).clamp_(0, 1)
    return fraction.mul_(spread[:, None]).add_(lowest[:, None])


def grayscale(
    images: Float[Tensor, "batch channels height width"], apply: Bool[Tensor, " batch"]
) -> Float[Tensor, "batch channels height width"]:
    """Greyscale: replaces the channels of the chosen images (bool ``[batch]``) by their grey; needs 3 channels."""
    check_colours(images, "grayscale")
    # three times as fast as torch.where, and as exact: lerp returns its ends as they are
    return torch.lerp(images, gray_level(images), _spread(apply.to(images.dtype)))


def solarize(
    images: Float[Tensor, "batch channels height width"], apply: Bool[Tensor, " batch"], threshold: float = 0.5
) -> Float[Tensor, "batch channels height width"]:
    """Solarization: inverts the values at or above the threshold in the chosen images (bool ``[batch]``)."""
    return torch.where(apply[:, None, None, None] & (images >= threshold), 1 - images, images)


def gray_level(images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch 1 height width"]:
    """The grey of each pixel, ``[batch, 1, height, width]``: ITU-R BT.601 luma of 3 channels, else their mean."""
    if images.shape[1] != 3:
        return images.mean(dim=1, keepdim=True)
    red, green, blue = images.split(1, dim=1)
    weight_red, weight_green, weight_blue = GRAY_WEIGHTS
    return (red * weight_red).add_(green, alpha=weight_green).add_(blue, alpha=weight_blue)


def check_colours(images: Tensor, name: str) -> None:
    """Raises a ValueError unless the images have 3 channels."""
    if images.shape[1] != 3:
        raise ValueError(f"{name} needs images with 3 channels, got {images.shape[1]}; set {name} to 0")


def _spread(factors: Tensor) -> Tensor:
    return factors[:, None, None, None]
