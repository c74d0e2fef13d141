"""Patch extraction, and what keeps patch tasks from being solved by colour or contrast alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ssl_toolkit.perf.device_constants import constant
from ssl_toolkit.random import fold_in, integers, normal

if TYPE_CHECKING:
    from jaxtyping import Float, Int64, Num

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# of a patch that is rescaled, in standard deviations of its pixels: a step of 8 bits
_LEAST_SIZE = 1 / 255 / 0.225


def take_patches(
    images: Num[Tensor, "batch channels height width"],
    tops: Int64[Tensor, "batch patches"],
    lefts: Int64[Tensor, "batch patches"],
    size: int,
) -> Num[Tensor, "batch patches channels size size"]:
    """Square patches of each image, at its own places.

    Args:
        images: ``[batch, channels, height, width]``.
        tops: int64 ``[batch, num_patches]``: row of each patch's top left corner, from 0 to ``height - size``.
        lefts: int64 ``[batch, num_patches]``: column of it, from 0 to ``width - size``.
        size: Side of the patches in pixels.

    Returns:
        Tensor of shape ``[batch, num_patches, channels, size, size]``.
    """
    # every patch that there is, as a view that copies nothing: [batch, channels, top, left, size, size]
    patches = images.unfold(2, size, 1).unfold(3, size, 1)
    samples = torch.arange(len(images), device=images.device)[:, None]
    return patches[samples, :, tops, lefts]


def drop_channels(
    patches: Float[Tensor, "*batch channels height width"],
    keys: Int64[Tensor, "*batch"],
    mean: Sequence[float] = IMAGENET_MEAN,
) -> Float[Tensor, "*batch channels height width"]:
    """Colour dropping: keeps one random channel of each patch and replaces the others by noise.

    A lens shifts the colours against each other towards the border of an image, which gives a patch's place away. So
    Doersch et al. (2015, arXiv 1505.05192, section 3.1) "randomly drop 2 of the 3 color channels from each patch,
    replacing the dropped colors with Gaussian noise (standard deviation ~1/100 the standard deviation of the
    remaining channel)". Their patches have the mean colour subtracted, so the noise lies about that mean; a fixed
    mean, unlike the patch's own, tells nothing about the dropped channels.

    Args:
        patches: float ``[*batch, channels, height, width]`` in [0, 1].
        keys: int64 ``[*batch]``: one key of `ssl_toolkit.random` for each patch.
        mean: Mean of each channel, in [0, 1]: that of the backbone's normalisation.

    Returns:
        Tensor of the shape of ``patches``.
    """
    channels, height, width = patches.shape[-3:]
    if len(mean) != channels:
        raise ValueError(f"drop_channels needs a mean for each of the {channels} channels of the patches, got {mean}")
    kept = integers(fold_in(keys, "kept channel"), 0, channels)
    keep = kept.unsqueeze(-1) == torch.arange(channels, device=patches.device)
    deviation = patches.std(dim=(-2, -1), correction=0)
    deviation = (deviation * keep).sum(-1)[..., None, None, None] / 100
    noise = normal(fold_in(keys, "noise"), channels * height * width).view_as(patches)
    centre = constant(tuple(mean), patches.device, patches.dtype)[:, None, None]
    return torch.where(keep[..., None, None], patches, centre + deviation * noise)


def project_colour(
    images: Float[Tensor, "*batch channels height width"],
) -> Float[Tensor, "*batch channels height width"]:
    """Colour projection: removes the green-magenta axis, along which lenses shift colours the most.

    Multiplies each pixel by ``I - a^T a / (a a^T)`` with ``a = [-1, 2, -1]`` (Doersch et al. 2015, arXiv 1505.05192,
    section 3.1). What is left of ``(r, g, b)`` is its mean m and its red-blue difference: ``(m + c, m, m - c)`` with
    ``c = (r - b) / 2``. Where that leaves [0, 1], c is cut to what fits, which keeps the axis exactly empty.

    Args:
        images: float ``[*batch, 3, height, width]`` in [0, 1].

    Returns:
        Tensor of the shape of ``images``, in [0, 1].
    """
    if images.shape[-3] != 3:
        raise ValueError(f"project_colour needs images with 3 channels, got {images.shape[-3]}")
    red, green, blue = images.unbind(-3)
    mean = (red + green + blue) / 3
    room = torch.minimum(mean, 1 - mean).clamp(min=0)
    difference = torch.clamp((red - blue) / 2, -room, room)
    return torch.stack([mean + difference, mean, mean - difference], dim=-3)


def rescale(
    patches: Float[Tensor, "*batch channels height width"],
    centre: bool,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> Float[Tensor, "*batch channels height width"]:
    """Gives each patch the same contrast, and if ``centre`` the same brightness and tint.

    Neighbouring patches resemble each other in these, which is of help to place them and tells nothing of what is in
    them. So Noroozi and Favaro (2016, arXiv 1603.09246, section 3) "normalize the mean and the standard deviation of
    each patch independently". Here that is done to what a network sees, ``z = (patch - mean) / std``: from z, if
    ``centre``, the mean of each of its channels is subtracted; then it is divided by its root mean square over all
    pixels and channels. A patch that is flatter than a step of 8 bits is enlarged no more than such a step.

    Args:
        patches: float ``[*batch, channels, height, width]`` in [0, 1].
        centre: Standardise the patch, instead of its root mean square alone.
        mean: Mean of each channel, in [0, 1]: that of the backbone's normalisation.
        std: Standard deviation of each channel, likewise.

    Returns:
        Tensor of the shape of ``patches``, ``mean + std * z``, which may leave [0, 1].
    """
    level, spread = (constant(tuple(each), patches.device, patches.dtype)[:, None, None] for each in (mean, std))
    seen = (patches - level) / spread
    if centre:
        seen = seen - seen.mean(dim=(-2, -1), keepdim=True)
    size = seen.square().mean(dim=(-3, -2, -1), keepdim=True).sqrt()
    return level + spread * seen / size.clamp(min=_LEAST_SIZE)


def erase(
    images: Float[Tensor, "batch channels height width"], boxes: Num[Tensor, "batch 4"], fill: float = 0.5
) -> Float[Tensor, "batch channels height width"]:
    """Fills a box of each image with one value (random erasing, Zhong et al. 2017, arXiv 1708.04896).

    Args:
        images: float ``[batch, channels, height, width]``.
        boxes: ``[batch, 4]``: top, left, height and width in pixels; a height or width of 0 erases nothing.
        fill: The value.

    Returns:
        Tensor of the shape of ``images``.
    """
    rows = torch.arange(images.shape[-2], device=images.device)
    columns = torch.arange(images.shape[-1], device=images.device)
    top, left, height, width = boxes.unsqueeze(-1).unbind(1)
    inside_rows = (rows >= top) & (rows < top + height)
    inside_columns = (columns >= left) & (columns < left + width)
    inside = inside_rows[:, :, None] & inside_columns[:, None, :]
    return images.masked_fill(inside[:, None], fill)
