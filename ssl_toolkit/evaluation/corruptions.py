"""Corruptions of images at five strengths: what the robustness of a classifier is measured on.

The families are those of Hendrycks and Dietterich 2019, "Benchmarking Neural Network Robustness to Common Corruptions
and Perturbations", arXiv 1903.12261, appendix B, and most of their ideas. The strengths are our own, some of them
in shares of the image's side, so that small images can be measured as well: figures are not comparable with those of
ImageNet-C or CIFAR-C. What is drawn is a function of the image's key alone, and the same at every strength, which makes
each strength the same corruption, only more of it.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ssl_toolkit.augment import CenterView, View
from ssl_toolkit.augment.base import in_parts
from ssl_toolkit.augment.colour import gray_level
from ssl_toolkit.batch import Images
from ssl_toolkit.errors import nearest
from ssl_toolkit.random import fold_in, normal, uniform

if TYPE_CHECKING:
    from jaxtyping import Float, Int64

STRENGTHS = (1, 2, 3, 4, 5)
# points of a disc, or of a line, for each pixel of its size
_FINE = 8


def gaussian_noise(images: Tensor, keys: Tensor, level: float) -> Tensor:
    """Adds Gaussian noise of this standard deviation."""
    return images + level * _noise(images, keys)


def shot_noise(images: Tensor, keys: Tensor, level: float) -> Tensor:
    """Adds Gaussian noise with the variance of counted photons, of which white has ``level``: that of dark is less."""
    return images + (images.clamp(min=0) / level).sqrt() * _noise(images, keys)


def impulse_noise(images: Tensor, keys: Tensor, level: float) -> Tensor:
    """Makes this share of all values black or white ("salt and pepper")."""
    chance, value = uniform(keys, 2 * images[0].numel()).view(len(images), 2, *images.shape[1:]).unbind(dim=1)
    return torch.where(chance < level, (value < 0.5).float(), images)


def defocus_blur(images: Tensor, keys: Tensor, level: float) -> Tensor:
    """Averages over a disc, of half a pixel and this share of the side in radius."""
    radius = 0.5 + level * images.shape[-1]
    reach = math.ceil(radius)
    line = (torch.arange(_FINE * (2 * reach + 1), device=images.device) + 0.5) / _FINE - reach - 0.5
    fine = (line[:, None].square() + line.square() <= radius**2).float()
    kernel = F.avg_pool2d(fine[None], _FINE)
    return _filtered(images, (kernel / kernel.sum()).expand(len(images), -1, -1))


def motion_blur(images: Tensor, keys: Tensor, level: float) -> Tensor:
    """Averages along a line, of a pixel and this share of the side in length; each image has its own direction."""
    length = 1 + level * images.shape[-1]
    reach = math.ceil(length / 2)
    width, num = 2 * reach + 1, math.ceil(_FINE * length)
    angle = math.pi * uniform(fold_in(keys, "angle"))
    along = ((torch.arange(num, device=images.device) + 0.5) / num - 0.5) * length
    places = torch.stack([angle.sin(), angle.cos()], dim=1)[:, :, None] * along + reach
    # each point counts for the pixels around it, the nearer the more
    weights = (1 - (places[..., None] - torch.arange(width, device=images.device)).abs()).clamp(min=0)
    kernels = torch.einsum("bny,bnx->byx", weights[:, 0], weights[:, 1]) / num
    return _filtered(images, kernels)


def pixelate(images: Tensor, keys: Tensor, level: float) -> Tensor:
    """Reduces to this share of the side, and enlarges again without smoothing."""
    side = images.shape[-1]
    small = F.interpolate(images, size=max(1, round(level * side)), mode="area")
    return F.interpolate(small, size=side, mode="nearest-exact")


def jpeg(images: Tensor, keys: Tensor, level: float) -> Tensor:
    """Compresses as JPEG of this quality."""
    pixels = (images.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    decoded = []
    for each in pixels:
        file = io.BytesIO()
        Image.fromarray(each.squeeze(-1) if each.shape[-1] == 1 else each).save(file, "JPEG", quality=int(level))
        decoded.append(torch.from_numpy(np.array(Image.open(file))).view(*each.shape))
    return torch.stack(decoded).permute(0, 3, 1, 2).to(images.device).float() / 255


def brightness(images: Tensor, keys: Tensor, level: float) -> Tensor:
    """Adds this much to all values."""
    return images + level


def contrast(images: Tensor, keys: Tensor, level: float) -> Tensor:
    """Draws all values towards the mean of the image's, to this share of their distance from it."""
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return mean + level * (images - mean)


def haze(images: Tensor, keys: Tensor, level: float) -> Tensor:
    """Mixes with a bright cloud, which has this share of the values; smooth, drawn for each image."""
    side, cloud = images.shape[-1], torch.zeros(len(images), 1, 1, 1, device=images.device)
    for cells, share in ((2, 0.5), (4, 0.3), (8, 0.2)):
        drawn = uniform(fold_in(fold_in(keys, "haze"), cells), cells * cells).view(-1, 1, cells, cells)
        cloud = cloud + share * F.interpolate(drawn, size=side, mode="bilinear", align_corners=True)
    return (1 - level) * images + level * (0.6 + 0.4 * cloud)


def saturation(images: Tensor, keys: Tensor, level: float) -> Tensor:
    """Draws colours towards grey, to this share of their distance from it."""
    grey = gray_level(images)
    return grey + level * (images - grey)


class Corruption(NamedTuple):
    """One family.

    Attributes:
        corrupt: Takes float images ``[batch, channels, side, side]`` in [0, 1], a key for each, and a level.
        levels: The level at each strength from 1 to 5.
    """

    corrupt: Callable[[Tensor, Tensor, float], Tensor]
    levels: tuple[float, float, float, float, float]


CORRUPTIONS = {
    "gaussian_noise": Corruption(gaussian_noise, (0.04, 0.08, 0.12, 0.18, 0.26)),
    "shot_noise": Corruption(shot_noise, (250.0, 100.0, 40.0, 15.0, 6.0)),
    "impulse_noise": Corruption(impulse_noise, (0.01, 0.03, 0.06, 0.1, 0.17)),
    "defocus_blur": Corruption(defocus_blur, (0.012, 0.02, 0.03, 0.04, 0.05)),
    "motion_blur": Corruption(motion_blur, (0.04, 0.06, 0.09, 0.12, 0.16)),
    "pixelate": Corruption(pixelate, (0.7, 0.55, 0.4, 0.3, 0.2)),
    "jpeg": Corruption(jpeg, (50.0, 30.0, 18.0, 10.0, 5.0)),
    "brightness": Corruption(brightness, (0.1, 0.2, 0.3, 0.4, 0.5)),
    "contrast": Corruption(contrast, (0.6, 0.45, 0.3, 0.2, 0.1)),
    "haze": Corruption(haze, (0.2, 0.35, 0.5, 0.65, 0.8)),
    "saturation": Corruption(saturation, (0.7, 0.5, 0.3, 0.15, 0.0)),
}


def corruptions_of(channels: int) -> list[str]:
    """The names of the families for images of so many channels: grey ones have no saturation."""
    return [name for name in CORRUPTIONS if channels > 1 or name != "saturation"]


class CorruptedView(View):
    """The centre crop of each image, corrupted. The same image is corrupted in the same way every time.

    Args:
        size: Side of the views in pixels.
        corruption: Name of a family in `CORRUPTIONS`.
        strength: From 1 to 5.

    Raises:
        ValueError: There is no such family or strength.
    """

    def __init__(self, size: int, corruption: str, strength: int) -> None:
        if corruption not in CORRUPTIONS:
            raise ValueError(
                f"corruption is one of {', '.join(CORRUPTIONS)}, got {corruption!r}{nearest(corruption, CORRUPTIONS)}"
            )
        if strength not in STRENGTHS:
            raise ValueError(f"the strength of a corruption is 1, 2, 3, 4 or 5, got {strength}")
        self.corruption, self.strength = corruption, strength
        self._centre = CenterView(size)

    def make(self, images: Images, keys: Int64[Tensor, " batch"]) -> Float[Tensor, "batch channels size size"]:
        family = CORRUPTIONS[self.corruption]
        level = family.levels[self.strength - 1]
        own = _Keys(fold_in(fold_in(keys, "corruption"), self.corruption))

        def render(pixels: Tensor, drawn: _Keys) -> Tensor:
            return family.corrupt(pixels, drawn.keys, level).clamp(0, 1)

        return in_parts(render, self._centre.make(images, keys), own)


class _Keys(NamedTuple):
    keys: Tensor


def _noise(images: Tensor, keys: Tensor) -> Tensor:
    return normal(keys, images[0].numel()).view(images.shape)


def _filtered(images: Tensor, kernels: Tensor) -> Tensor:
    """Each image by its own kernel ``[batch, width, width]`` of odd width; border pixels go on beyond the border."""
    channels, reach = images.shape[1], kernels.shape[-1] // 2
    padded = F.pad(images, (reach,) * 4, mode="replicate").flatten(0, 1)[None]
    weights = kernels.repeat_interleave(channels, dim=0)[:, None]
    return F.conv2d(padded, weights.to(images), groups=len(weights)).view(images.shape)
