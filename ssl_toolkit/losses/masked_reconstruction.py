"""Masked reconstruction: the pixels of hidden patches, each patch normalised by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ssl_toolkit.losses.full_precision import full_precision

if TYPE_CHECKING:
    from jaxtyping import Bool, Float


def masked_reconstruction(
    predicted: Float[Tensor, "batch channels height width"],
    images: Float[Tensor, "batch channels height width"],
    hidden: Bool[Tensor, "batch rows columns"],
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Mean squared error of the pixels of hidden patches (He et al. 2022, arXiv 2111.06377, section 3; Tian et al.
    2023, arXiv 2301.03580, section 3.3).

    The mean is over the hidden patches of an image, and then over the images, so that it does not matter which images
    share a batch.

    Args:
        predicted: Pixels as `normalized_patches` normalises them, of any float type, computed in float32 at least.
        images: Pixels in [0, 1].
        hidden: Which patches count; at least one of each image.

    Returns:
        The loss, and by how much it is below that of the prediction 0, which is each patch's own mean: 0 by chance, and
        at most 1; less than that where patches are of a single colour, of which nothing is left to predict.
    """
    with torch.autocast(predicted.device.type, enabled=False):
        grid = (hidden.shape[1], hidden.shape[2])
        targets = normalized_patches(full_precision(images), *grid)
        errors = (patches_of(full_precision(predicted), *grid) - targets).square().mean(dim=3)
        weights = hidden.to(errors.dtype) / hidden.sum(dim=(1, 2), keepdim=True)
        loss = (errors * weights).sum(dim=(1, 2)).mean()
        by_chance = (targets.square().mean(dim=3) * weights).sum(dim=(1, 2)).mean()
    return loss, by_chance - loss.detach()


def normalized_patches(
    images: Float[Tensor, "batch channels height width"], rows: int, columns: int, eps: float = 1e-6
) -> Float[Tensor, "batch rows columns numbers"]:
    """Patches of which each has mean 0 and variance 1 over all its pixels and channels.

    Args:
        images: Pixels in [0, 1].
        rows: Of patches.
        columns: Likewise.
        eps: Added to the variance: about what the rounding of pixels to 8 bits adds to it.
    """
    patches = patches_of(images, rows, columns)
    variance, mean = torch.var_mean(patches, dim=3, correction=0, keepdim=True)
    return (patches - mean) * torch.rsqrt(variance + eps)


def patches_of(
    images: Float[Tensor, "batch channels height width"], rows: int, columns: int
) -> Float[Tensor, "batch rows columns numbers"]:
    """The pixels of each patch of a grid, as ``channels * height * width`` numbers."""
    cut = images.unflatten(3, (columns, -1)).unflatten(2, (rows, -1))
    return cut.permute(0, 2, 4, 1, 3, 5).flatten(3)
