"""`PatchTask`: the base class of tasks on patches of an image."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor

from pretext.base.fill import check_no_fill
from pretext.base.task import PretextTask
from ssl_toolkit.augment import (
    RandomView,
    drop_channels,
    gray_level,
    project_colour,
    reduce_resolution,
    rescale,
    take_patches,
)
from ssl_toolkit.batch import Images
from ssl_toolkit.random import fold_in, integers, uniform

Colour = Literal["dropping", "projection", "grey", "none"]
Rescaling = Literal["none", "rms", "standardize"]

# of a patch whose resolution is reduced: 100 pixels in all
_LEAST_SIDE = 10


class PatchTask(PretextTask):
    """Base class of tasks on patches of an image. A new one says where they lie, and defines `make_views` and `loss`.

    Each patch passes through the backbone once. What is done to a patch, it gets in this order: resolution, colour,
    rescaling; all of it is against shortcuts, by which a patch's place shows without a look at what is in it.

    Args:
        view: How the image that is cut is made. Strong colour changes are not needed. It is mirrored as a whole before
            it is cut, so that left and right of the patches are those of what is seen. Rotation, erasing and policies
            are refused: they fill places with grey, and where the fill lies in a patch tells where the patch lies in
            the image.
        patch_size: Side of a patch in pixels.
        colour: What is done against chromatic aberration, by which a lens gives the position away (Doersch et al. 2015,
            section 3.1): ``dropping`` keeps one random channel of each patch and replaces the others with noise,
            ``projection`` removes green against magenta, ``grey`` leaves the brightness alone, ``none`` does nothing.
            Grey images, of 1 channel, have none: they stay as they are.
        downsampling: Probability of a patch to be resized to a lower resolution and back, 0 to 1: to a side that is
            drawn from 10 pixels up (Doersch et al. 2015, section 3: as few as 100 pixels in all). 1/3 is usual.
        rescaling: What is done against brightness and contrast that neighbouring patches share: ``rms`` gives each
            patch the same root mean square, ``standardize`` also the same mean (`ssl_toolkit.augment.rescale`).
        **kwargs: See `ssl_toolkit.task.Task`.
    """

    traits = frozenset({"several_rows"})

    def __init__(
        self,
        *,
        view: RandomView,
        patch_size: int,
        colour: Colour = "dropping",
        downsampling: float = 0.0,
        rescaling: Rescaling = "none",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_no_fill(view, ("rotation", "erase", "policy"), "a patch's place")
        for name, value, choices in (("colour", colour, Colour), ("rescaling", rescaling, Rescaling)):
            if value not in get_args(choices):
                raise ValueError(f"model.{name} is {value!r}, expected one of {', '.join(get_args(choices))}")
        if not 0 <= downsampling <= 1:
            raise ValueError(f"model.downsampling is {downsampling}, expected a probability, 0 to 1")
        if downsampling and patch_size <= _LEAST_SIDE:
            raise ValueError(
                f"model.downsampling is {downsampling}, but patches of {patch_size} px have no lower resolution of "
                f"{_LEAST_SIDE} px or more; leave it out"
            )
        self.view = view
        self.patch_size = patch_size
        self.colour: Colour = colour
        self.downsampling = downsampling
        self.rescaling: Rescaling = rescaling

    def check_patch_size(self) -> None:
        """Raises a ValueError for patches of which the last stage gets a single pixel."""
        if self.backbone.map_sides(self.patch_size)[self.backbone.stages[-2]] < 2:
            raise ValueError(
                f"model.patch_size={self.patch_size} is too small for {self.backbone.name}: a single pixel is left "
                "before its last stage; expected a larger model.patch_size (and view.size), or backbone.stem: small"
            )

    def cut(self, images: Images, keys: Tensor, tops: Tensor, lefts: Tensor) -> Tensor:
        """Makes the view of each image, cuts patches out of it and does to them what the arguments say.

        Args:
            images: A batch of images.
            keys: int64 tensor of shape ``[batch]``: the samples' keys.
            tops: int64 tensor of shape ``[batch, num]``: the row of each patch's top left corner in the view.
            lefts: int64 tensor of the same shape: the column of it.

        Returns:
            float32 tensor of shape ``[batch, num, channels, patch_size, patch_size]``.
        """
        patches = take_patches(self.view(images, fold_in(keys, "view")), tops, lefts, self.patch_size)
        numbers = torch.arange(tops.shape[1], device=keys.device)
        flat = patches.flatten(0, 1)
        if self.downsampling:
            keys_of_patches = fold_in(fold_in(keys, "downsampling")[:, None], numbers).flatten()
            lower = integers(fold_in(keys_of_patches, "side"), _LEAST_SIDE, self.patch_size)
            chosen = uniform(keys_of_patches) < self.downsampling
            flat = reduce_resolution(flat, torch.where(chosen, lower, self.patch_size))
        if self.colour == "dropping":
            keys_of_patches = fold_in(fold_in(keys, "dropping")[:, None], numbers).flatten()
            flat = drop_channels(flat, keys_of_patches, self.backbone.mean)
        elif self.colour == "projection" and flat.shape[1] > 1:
            flat = project_colour(flat)
        elif self.colour == "grey":
            flat = gray_level(flat).expand_as(flat)
        if self.rescaling != "none":
            flat = rescale(flat, self.rescaling == "standardize", self.backbone.mean, self.backbone.std)
        return flat.unflatten(0, patches.shape[:2])


def couple(features: Tensor, num: int, first: Tensor, second: Tensor) -> Tensor:
    """The features of two patches side by side, for pairs within each image.

    Args:
        features: ``[batch * num, num_features]``, the patches of one image after those of the other.
        num: Patches of an image.
        first: int64 tensor of shape ``[pairs]``: the first patch of each pair, from 0 to ``num - 1``.
        second: Likewise the second.

    Returns:
        Tensor of shape ``[batch * pairs, 2 * num_features]``.
    """
    of_image = features.unflatten(0, (-1, num))
    return torch.cat([of_image[:, first], of_image[:, second]], dim=-1).flatten(0, 1)
