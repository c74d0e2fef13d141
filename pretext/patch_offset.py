"""Patch offset: regress how far one patch of an image lies from another, off any grid.

The idea is that of PART (Ayoughi et al.: "How PARTs assemble into wholes: learning the relative composition of images",
2025, arXiv 2506.03682), which is for vision transformers. This is our version of the idea for convolutional networks,
and not the published method.
"""

from __future__ import annotations

import itertools
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pretext.base import PatchTask
from pretext.base.patches import couple
from ssl_toolkit.augment import RandomView
from ssl_toolkit.batch import Images
from ssl_toolkit.losses import offset_moments, offset_regression
from ssl_toolkit.modules import mlp
from ssl_toolkit.random import fold_in, integers
from ssl_toolkit.step import StepContext, StepOutput


class Scattered(NamedTuple):
    """Patches of a batch, scattered over their images.

    Attributes:
        patches: ``[batch, num, channels, patch_size, patch_size]``.
        corners: int64 tensor of shape ``[batch, num, 2]``: row and column of each patch's top left corner in its view.
    """

    patches: Tensor
    corners: Tensor


class PatchOffset(PatchTask):
    """Patch offset: regresses the offset (down, right) between two patches, in patch sides.

    Patches lie anywhere in an image, drawn from its key. Each passes the backbone once; then all ordered pairs of an
    image's patches are compared that are not too near each other. PART's transformer sees all patches of an image
    together; here the network sees one at a time, and the regressor two.

    Args:
        view: How the image is made in which the patches lie. See `pretext.base.PatchTask`.
        patch_size: Side of a patch in pixels.
        num_patches: How many of each image, at least 2.
        least_distance: Pairs are compared that are at least so far apart, down or right, in patch sides from corner to
            corner; 0 compares all. Below 1 patches may overlap: what they share gives the offset away by a comparison
            of textures. At 1 they may touch, so that edges which continue do so; the rest is a gap.
        hidden_width: Width of the regressor's hidden layer.
        **kwargs: See `pretext.base.PatchTask` and `ssl_toolkit.task.Task`.
    """

    compared: Tensor

    def __init__(
        self,
        *,
        view: RandomView,
        patch_size: int,
        num_patches: int = 9,
        least_distance: float = 1.25,
        hidden_width: int = 512,
        **kwargs: Any,
    ) -> None:
        super().__init__(view=view, patch_size=patch_size, **kwargs)
        if num_patches < 2:
            raise ValueError(f"model.num_patches is {num_patches}, expected at least 2")
        if least_distance < 0:
            raise ValueError(f"model.least_distance is {least_distance}, expected a number of patch sides from 0")
        self.room = view.size - patch_size
        self.least = math.ceil(round(least_distance * patch_size, 6))  # 1.1 * 20 is a little more than 22
        if patch_size < 1 or self.room < max(1, self.least):
            raise ValueError(
                f"model.patch_size={patch_size} with least_distance={least_distance} leaves no two places in a view of "
                f"{view.size} px; expected a view.size of at least {patch_size + max(1, self.least)}"
            )
        self.check_patch_size()
        self.num_patches = num_patches
        self.fraction, self.mean_square = offset_moments(self.room, self.least)
        self.regressor = mlp([2 * self.backbone.num_features, hidden_width, 2])
        compared = torch.tensor(list(itertools.permutations(range(num_patches), 2)))
        self.register_buffer("compared", compared, persistent=False)

    def initial_loss(self, batch_size: int) -> float:
        """The mean square of an offset in patch sides: the offsets' mean is 0, which is all that is known."""
        return self.mean_square / self.patch_size**2

    @property
    def initial_loss_margin(self) -> tuple[float, float]:
        """The fewer pairs count, the more one batch differs from another: by less than this, five times over, of 32
        images. Predictions may begin with a variance of a half.
        """
        scatter = self.initial_loss(0) / math.sqrt(self.num_patches * self.fraction)
        return scatter, scatter + 0.5

    def make_views(self, images: Images, keys: Tensor) -> Scattered:
        """Patches at random places of each image."""
        corners = integers(fold_in(keys, "places"), 0, self.room + 1, 2 * self.num_patches).unflatten(1, (-1, 2))
        return Scattered(self.cut(images, keys, *corners.unbind(2)), corners)

    def view_pictures(self, views: Scattered) -> Tensor:
        """The patches."""
        return views.patches

    def loss(self, views: Scattered, context: StepContext) -> StepOutput:
        """Mean squared error in patch sides; ``variance_explained`` is 1 minus its share of what is lost by chance."""
        features = self.backbone(views.patches.flatten(0, 1))
        first, second = self.compared.unbind(dim=1)
        predicted = self.regressor(couple(features, self.num_patches, first, second)).unflatten(0, (-1, len(first)))
        offsets = views.corners[:, second] - views.corners[:, first]
        loss = offset_regression(predicted, offsets, self.patch_size, self.least, self.fraction)
        return StepOutput(loss, features, {"variance_explained": 1 - loss.detach() / self.initial_loss(0)})
