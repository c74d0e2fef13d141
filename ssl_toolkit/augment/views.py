"""Views: what a network sees of a batch of images, drawn by key, with parameters of its own for each sample."""

from __future__ import annotations

import inspect
from typing import NamedTuple

import torch
from torch import Tensor

from ssl_toolkit.augment.base import View, in_parts
from ssl_toolkit.augment.boxes import centre_boxes, random_erasing_boxes, random_resized_crop_boxes
from ssl_toolkit.augment.colour import grayscale, solarize
from ssl_toolkit.augment.geometry import Interpolation, crop_resize, gaussian_blur
from ssl_toolkit.augment.jitter import Form, Jitter, colour_jitter, draw_jitter
from ssl_toolkit.augment.patches import erase
from ssl_toolkit.augment.policies import Policy, Steps
from ssl_toolkit.augment.warp import rotate
from ssl_toolkit.batch import Images
from ssl_toolkit.errors import nearest
from ssl_toolkit.random import fold, streams, uniform

# arguments of `RandomView` that are the probability of one step; each is drawn from the stream of its name
_PROBABILITIES = ("hflip", "vflip", "grayscale", "blur", "solarize", "erase")


class CenterView(View):
    """The view for evaluation: the centred square of an image, resized with antialiasing. Nothing in it is random.

    An image whose short side is the size already is cut and not resampled.

    Args:
        size: Side of the views in pixels.
        crop_fraction: Side of the square as a share of the image's short side, in (0, 1]. 0.875 is ImageNet's usual
            "resize to 256, crop 224".
    """

    def __init__(self, size: int = 224, crop_fraction: float = 1.0) -> None:
        _check_size(size)
        if not 0 < crop_fraction <= 1:
            raise ValueError(f"crop_fraction is a share of the short side in (0, 1], got {crop_fraction}")
        self.size = size
        self.crop_fraction = crop_fraction

    def make(self, images: Images, keys: Tensor) -> Tensor:
        boxes = centre_boxes(images.sizes, self.crop_fraction)
        return in_parts(lambda pixels, boxes: crop_resize(pixels, boxes, self.size), images.pixels, boxes)

    def __repr__(self) -> str:
        return f"CenterView(size={self.size}, crop_fraction={self.crop_fraction:g})"


class _Choices(NamedTuple):
    """What was drawn for each image; None for a step that is left out."""

    boxes: Tensor
    hflip: Tensor | None
    vflip: Tensor | None
    jitter: Jitter | None
    grayscale: Tensor | None
    sigmas: Tensor | None
    solarize: Tensor | None
    erased: Tensor | None
    angles: Tensor | None
    steps: Steps | None


class RandomView(View):
    """Random crop, flip, rotation, policy, colour jitter, greyscale, blur, solarization and erasing, in this order.

    The defaults are SimCLR's (Chen et al. 2020, arXiv 2002.05709, appendix A) at strength 1. Its CIFAR recipe is
    strength 0.5 without blur: ``brightness=contrast=saturation=0.4, hue=0.1, blur=0``. BYOL (Grill et al. 2020,
    arXiv 2006.07733, appendix B) has ``brightness=contrast=0.4, saturation=0.2, hue=0.1`` and blurs one view always,
    the other one seldom (0.1) with ``solarize=0.2``.

    Args:
        size: Side of the views in pixels.
        scale: Range of the crop's area as a share of the image's, in (0, 1].
        ratio: Range of the crop's width / height, above 0.
        hflip: Probability of mirroring left to right, in [0, 1].
        vflip: Probability of mirroring upside down, in [0, 1].
        jitter_prob: Probability of the colour jitter, in [0, 1].
        brightness: The brightness factor is uniform in [max(0, 1 - brightness), 1 + brightness]; 0 for none.
        contrast: Likewise.
        saturation: Likewise. Needs 3 channels.
        hue: The hue shift is uniform in [-hue, hue], a share of a full turn, at most 0.5; 0 for none. Needs 3 channels.
        grayscale: Probability of making the view grey, in [0, 1]. Needs 3 channels.
        blur: Probability of the Gaussian blur, in [0, 1].
        blur_sigma: Range of the blur's standard deviation in pixels of the view, above 0.
        blur_kernel: Width of the blur's kernel in pixels, odd; None for a tenth of the view's side, at least 3.
        solarize: Probability of inverting the values at or above 0.5, in [0, 1].
        erase: Probability of erasing a rectangle to mid-grey, in [0, 1].
        erase_scale: Range of the rectangle's area as a share of the view's, in (0, 1].
        interpolation: "bilinear" or "bicubic", both antialiased.
        form: "exact": the colour steps equal torchvision's. "fused": they are one affine map a sample, and the blur
            is part of the resize: faster; clamping and hue are approximated.
        rotation: The angle is uniform in [-rotation, rotation] degrees, at most 180; 0 for none. Corners that are left
            empty are mid-grey.
        policy: Operations drawn for each view, such as `RandAugment`; with one, colour jitter is usually left out
            (``jitter_prob=0, grayscale=0, blur=0``).

    Attributes:
        side: Side in pixels of the views that are made now, at most ``size``: smaller ones show the same, and the
            blur goes with them.
    """

    def __init__(
        self,
        size: int = 224,
        scale: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        hflip: float = 0.5,
        vflip: float = 0.0,
        jitter_prob: float = 0.8,
        brightness: float = 0.8,
        contrast: float = 0.8,
        saturation: float = 0.8,
        hue: float = 0.2,
        grayscale: float = 0.2,
        blur: float = 0.5,
        blur_sigma: tuple[float, float] = (0.1, 2.0),
        blur_kernel: int | None = None,
        solarize: float = 0.0,
        erase: float = 0.0,
        erase_scale: tuple[float, float] = (0.02, 0.33),
        interpolation: Interpolation = "bilinear",
        form: Form = "exact",
        rotation: float = 0.0,
        policy: Policy | None = None,
    ) -> None:
        _check_size(size)
        _check_range("scale", scale, "shares of the area in (0, 1]", 1)
        _check_range("ratio", ratio, "two numbers above 0")
        _check_range("blur_sigma", blur_sigma, "two numbers of pixels above 0")
        _check_range("erase_scale", erase_scale, "shares of the area in (0, 1]", 1)
        for name, prob in {
            "hflip": hflip, "vflip": vflip, "jitter_prob": jitter_prob, "grayscale": grayscale,
            "blur": blur, "solarize": solarize, "erase": erase,
        }.items():  # fmt: skip
            if not 0 <= prob <= 1:
                raise ValueError(f"{name} is a probability in [0, 1], got {prob}")
        for name, strength in {"brightness": brightness, "contrast": contrast, "saturation": saturation}.items():
            if strength < 0:
                raise ValueError(f"{name} is a strength from 0, got {strength}")
        if not 0 <= hue <= 0.5:
            raise ValueError(f"hue is a share of a full turn in [0, 0.5], got {hue}")
        if not 0 <= rotation <= 180:
            raise ValueError(f"rotation is a number of degrees in [0, 180], got {rotation}")
        _check_choice("interpolation", interpolation, ("bilinear", "bicubic"))
        _check_choice("form", form, ("exact", "fused"))
        if blur_kernel is not None and (blur_kernel % 2 == 0 or not 1 <= blur_kernel < 2 * size):
            raise ValueError(
                f"blur_kernel is an odd number of pixels below twice the size, got {blur_kernel} for size {size}"
            )
        self.size = self.side = size
        self.scale = scale
        self.ratio = ratio
        self.hflip = hflip
        self.vflip = vflip
        self.jitter_prob = jitter_prob
        self.brightness = brightness
        self.contrast = contrast
        self.saturation = saturation
        self.hue = hue
        self.grayscale = grayscale
        self.blur = blur
        self.blur_sigma = blur_sigma
        self.blur_kernel = blur_kernel
        self.solarize = solarize
        self.erase = erase
        self.erase_scale = erase_scale
        self.interpolation: Interpolation = interpolation
        self.form: Form = form
        self.rotation = rotation
        self.policy = policy

    def make(self, images: Images, keys: Tensor) -> Tensor:
        return in_parts(self._render, images.pixels, self._draw(images.sizes, keys))

    def _draw(self, sizes: Tensor, keys: Tensor) -> _Choices:
        drawn = zip(_PROBABILITIES, uniform(streams(keys, *_PROBABILITIES)).unbind(-1), strict=True)
        chosen = {name: numbers < getattr(self, name) if getattr(self, name) else None for name, numbers in drawn}
        sigmas = jitter = erased = None
        if chosen["blur"] is not None:
            sigmas = uniform(fold(keys, "blur sigma"), None, *self.blur_sigma) * chosen["blur"]
            sigmas = sigmas * (self.side / self.size)
        if self.jitter_prob and (self.brightness or self.contrast or self.saturation or self.hue):
            jitter = draw_jitter(
                fold(keys, "jitter"), self.brightness, self.contrast, self.saturation, self.hue, self.jitter_prob
            )
        if chosen["erase"] is not None:
            whole = torch.full_like(sizes, self.side)
            erased = random_erasing_boxes(whole, fold(keys, "erase box"), self.erase_scale) * chosen["erase"][:, None]
        boxes = random_resized_crop_boxes(sizes, fold(keys, "crop"), self.scale, self.ratio)
        angles = uniform(fold(keys, "rotation"), None, -self.rotation, self.rotation) if self.rotation else None
        steps = self.policy.draw(fold(keys, "policy"), self.side) if self.policy else None
        return _Choices(
            boxes, chosen["hflip"], chosen["vflip"], jitter, chosen["grayscale"], sigmas, chosen["solarize"], erased,
            angles, steps,
        )  # fmt: skip

    def _render(self, pixels: Tensor, drawn: _Choices) -> Tensor:
        fused = self.form == "fused"
        kernel = self._kernel()
        views = crop_resize(
            pixels,
            drawn.boxes,
            self.side,
            flip=drawn.hflip,
            vertical_flip=drawn.vflip,
            blur=drawn.sigmas if fused else None,
            blur_kernel=kernel,
            interpolation=self.interpolation,
        )
        if self.interpolation == "bicubic":
            views = views.clamp_(0, 1)
        if drawn.angles is not None:
            views = rotate(views, drawn.angles)
        if self.policy is not None and drawn.steps is not None:
            views = self.policy(views, drawn.steps)
        if drawn.jitter is not None:
            views = colour_jitter(views, drawn.jitter, self.form)
        if drawn.grayscale is not None:
            views = grayscale(views, drawn.grayscale)
        if drawn.sigmas is not None and not fused:
            views = gaussian_blur(views, drawn.sigmas, kernel)
        if drawn.solarize is not None:
            views = solarize(views, drawn.solarize)
        if drawn.erased is not None:
            views = erase(views, drawn.erased)
        return views

    def __repr__(self) -> str:
        parameters = inspect.signature(type(self)).parameters.values()
        values = [(each.name, getattr(self, each.name), each.default) for each in parameters]
        changed = [f"{name}={value!r}" for name, value, default in values if name == "size" or value != default]
        return f"{type(self).__name__}({', '.join(changed)})"

    def _kernel(self) -> int:
        if self.blur_kernel is None:
            return max(3, self.side // 10 // 2 * 2 + 1)
        return max(0, self.blur_kernel * self.side // self.size - 1) // 2 * 2 + 1


def _check_size(size: int) -> None:
    if size < 1:
        raise ValueError(f"size is the side of the views in pixels, from 1, got {size}")


def _check_range(name: str, values: tuple[float, float], expected: str, highest: float = float("inf")) -> None:
    if not (len(values) == 2 and 0 < values[0] <= values[1] <= highest):
        raise ValueError(f"{name} is a range [low, high] of {expected}, got {list(values)}")


def _check_choice(name: str, value: str, choices: tuple[str, str]) -> None:
    if value not in choices:
        raise ValueError(f"{name} is {choices[0]!r} or {choices[1]!r}, got {value!r}{nearest(value, choices)}")
