"""Patches at known places, with a known chromatic aberration: what the shortcut meter shows a network."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ssl_toolkit.augment import CenterView, View, take_patches
from ssl_toolkit.augment.geometry import crop_resize
from ssl_toolkit.batch import Images
from ssl_toolkit.random import fold_in, integers, uniform

if TYPE_CHECKING:
    from jaxtyping import Float, Int64


class PatchView(View):
    """One patch of each image at a place that is drawn uniformly from its key, if asked for with an aberration.

    A lateral chromatic aberration magnifies the colours differently about the image's centre: red by ``1 + a``, blue
    by ``1 - a``, green by 1. Here a is drawn uniformly for each patch, between two values of opposite sign. Within a
    patch it is nearly a shift of red against blue, along the line to the image's centre.

    Args:
        image_size: Side in pixels of the centre crop of which patches are cut.
        size: Side of a patch in pixels.
        number: Of the patch: another number is another place.
        seed: Of the places.
        reach: By how many pixels red, and blue the other way, is shifted in the corners of the image, at most; 0 for
            images as they are.

    Raises:
        ValueError: If the patch does not fit, or the reach is negative.
    """

    def __init__(self, image_size: int, size: int, number: int = 0, seed: int = 0, reach: float = 0.0) -> None:
        if not 0 < size <= image_size or reach < 0:
            raise ValueError(
                f"a patch of {size} px in an image of {image_size} px with a reach of {reach} cannot be; expected a "
                "patch from 1 px to the image's side, and a reach of 0 or more"
            )
        self.image_size, self.size, self.number, self.seed, self.reach = image_size, size, number, seed, reach
        # what lies beyond the crop comes into view where a colour is reduced
        self._margin = math.ceil(reach) + 1 if reach else 0
        self._centre_view = CenterView(image_size + 2 * self._margin)

    def corners(self, keys: Int64[Tensor, " batch"]) -> Int64[Tensor, "batch 2"]:
        """The row and the column of each patch's top left corner in the centre crop, int64."""
        return integers(fold_in(self._own(keys), "place"), 0, self.image_size - self.size + 1, 2)

    def positions(self, keys: Int64[Tensor, " batch"]) -> Float[Tensor, "batch 2"]:
        """The row and the column of each patch's centre, as fractions of the image's side, float64."""
        return (self.corners(keys).double() + self.size / 2) / self.image_size

    def magnifications(self, keys: Int64[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        """By which fraction red is magnified and blue reduced, float32; negative the other way round."""
        most = self.reach / (self.image_size / math.sqrt(2))
        return uniform(fold_in(self._own(keys), "aberration"), low=-most, high=most)

    def shifts(self, keys: Int64[Tensor, " batch"]) -> Float[Tensor, "batch 2"]:
        """By how many pixels red is shifted against blue at each patch's centre, down and to the right, float64."""
        from_centre = (self.positions(keys) - 0.5) * self.image_size
        return 2 * self.magnifications(keys).double()[:, None] * from_centre

    def make(self, images: Images, keys: Int64[Tensor, " batch"]) -> Float[Tensor, "batch channels size size"]:
        whole = self._centre_view.make(images, keys)
        tops, lefts = self.corners(keys).unbind(dim=1)
        if not self.reach:
            return take_patches(whole, tops[:, None], lefts[:, None], self.size)[:, 0]
        if whole.shape[1] != 3:
            raise ValueError(f"a chromatic aberration needs images with 3 channels, got {whole.shape[1]}")
        a = self.magnifications(keys)
        factors = torch.stack([1 + a, torch.ones_like(a), 1 - a], dim=1)
        middle = self.image_size / 2
        top, left = (
            self._margin + middle + (start[:, None] - middle) / factors for start in (tops.float(), lefts.float())
        )
        length = self.size / factors
        boxes = torch.stack([top, left, length, length], dim=-1).flatten(0, 1)
        return crop_resize(whole.flatten(0, 1)[:, None], boxes, self.size).view(len(whole), 3, self.size, self.size)

    def _own(self, keys: Tensor) -> Tensor:
        return fold_in(fold_in(fold_in(keys, "shortcut meter"), self.seed), self.number)
