"""Centre crop: the view for evaluation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ssl_toolkit.augment.base import View, check_size, in_parts
from ssl_toolkit.augment.boxes import centre_boxes
from ssl_toolkit.augment.geometry import crop_resize
from ssl_toolkit.batch import Images

if TYPE_CHECKING:
    from jaxtyping import Float, Int64, Num


class CenterView(View):
    """Centre crop for evaluation: the centred square of an image, resized with antialiasing. Nothing is random.

    An image whose short side is the size already is cut and not resampled.

    Args:
        size: Side of the views in pixels.
        crop_fraction: Side of the square as a fraction of the image's short side, in (0, 1]. 0.875 is ImageNet's usual
            "resize to 256, crop 224".
    """

    def __init__(self, size: int = 224, crop_fraction: float = 1.0) -> None:
        check_size(size)
        if not 0 < crop_fraction <= 1:
            raise ValueError(f"crop_fraction is a share of the short side in (0, 1], got {crop_fraction}")
        self.size = size
        self.crop_fraction = crop_fraction

    def make(self, images: Images, keys: Int64[Tensor, " batch"]) -> Float[Tensor, "batch channels size size"]:
        boxes = centre_boxes(images.sizes, self.crop_fraction)
        return in_parts(lambda pixels, boxes: crop_resize(pixels, boxes, self.size), images.pixels, boxes)

    def places(self, sizes: Num[Tensor, "batch 2"]) -> tuple[Int64[Tensor, "batch size"], Int64[Tensor, "batch size"]]:
        """Which pixel of an image is nearest to the centre of each pixel of its view: for masks.

        Args:
            sizes: Heights and widths of the images in pixels.

        Returns:
            Their rows and their columns.
        """
        top, left, side, _ = centre_boxes(sizes, self.crop_fraction).long()[:, :, None].unbind(1)
        # exact, as it is in whole numbers: the centre of a view's pixel, in half steps
        steps = (2 * torch.arange(self.size, device=sizes.device) + 1) * side // (2 * self.size)
        return top + steps, left + steps

    def __repr__(self) -> str:
        return f"CenterView(size={self.size}, crop_fraction={self.crop_fraction:g})"
