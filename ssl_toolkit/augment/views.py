"""Random views of a batch of images, drawn by key, with separate parameters for each sample."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jsonargparse.typing import final
from torch import Tensor

from ssl_toolkit.augment.base import View, check_size, in_parts
from ssl_toolkit.augment.boxes import random_erasing_boxes, random_resized_crop_boxes
from ssl_toolkit.augment.colour import grayscale, solarize
from ssl_toolkit.augment.geometry import Interpolation, crop_resize, gaussian_blur
from ssl_toolkit.augment.jitter import Form, Jitter, colour_jitter, draw_jitter
from ssl_toolkit.augment.patches import erase
from ssl_toolkit.augment.policies import Policy, Steps
from ssl_toolkit.augment.presets import PRESETS, Preset, resolve
from ssl_toolkit.augment.warp import rotate
from ssl_toolkit.batch import Images
from ssl_toolkit.errors import nearest
from ssl_toolkit.random import fold_in, streams, uniform

if TYPE_CHECKING:
    from jaxtyping import Float, Int64

# arguments of `RandomView` that are the probability of one step; each is drawn from the stream of its name
_PROBABILITIES = ("hflip", "vflip", "grayscale", "blur", "solarize", "erase")


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
    """Random view: crop, flip, rotation, policy, colour jitter, greyscale, blur, solarization and erasing, in this
    order.

    Arguments that are not given are those of the preset (`ssl_toolkit.augment.presets.PRESETS`): ``simclr`` (Chen et
    al. 2020, arXiv 2002.05709, appendix A, strength 1), ``simclr_cifar`` (its appendix B.9: strength 0.5, no blur),
    ``moco_v2`` (Chen et al. 2020, arXiv 2003.04297), ``byol_first`` and ``byol_second`` (Grill et al. 2020, arXiv
    2006.07733, table 6), ``large_crop`` and ``small_crop`` (the multi-crop of Caron et al. 2020, arXiv 2006.09882), or
    ``crop_and_flip`` (no colours).

    Args:
        size: Side of the views in pixels.
        scale: Range of the crop's area as a fraction of the image's, in (0, 1].
        ratio: Range of the crop's width / height, above 0.
        hflip: Probability of mirroring left to right, in [0, 1].
        vflip: Probability of mirroring upside down, in [0, 1].
        jitter_prob: Probability of the colour jitter, in [0, 1].
        brightness: The brightness factor is uniform in [max(0, 1 - brightness), 1 + brightness]; 0 for none.
        contrast: Likewise.
        saturation: Likewise. Grey images, of 1 channel, have none to change.
        hue: The hue shift is uniform in [-hue, hue], a fraction of a full turn, at most 0.5; 0 for none. Grey images
            have none to change.
        grayscale: Probability of making the view grey, in [0, 1]; grey images are that already.
        blur: Probability of the Gaussian blur, in [0, 1].
        blur_sigma: Range of the blur's standard deviation in pixels of the view, above 0.
        blur_kernel: Width of the blur's kernel in pixels, odd; None for a tenth of the view's side, at least 3.
        solarize: Probability of inverting the values at or above 0.5, in [0, 1].
        erase: Probability of erasing a rectangle to mid-grey, in [0, 1].
        erase_scale: Range of the rectangle's area as a fraction of the view's, in (0, 1].
        interpolation: "bilinear" or "bicubic", both antialiased.
        form: "exact": the colour steps equal torchvision's. "fused": they are one affine map a sample, and the blur
            is part of the resize: faster; clamping and hue are approximated.
        rotation: The angle is uniform in [-rotation, rotation] degrees, at most 180; 0 for none. Corners that are left
            empty are mid-grey.
        policy: Operations drawn for each view, such as `RandAugment`; with one, colour jitter is usually left out
            (``jitter_prob=0, grayscale=0, blur=0``).
        preset: Whose settings those are that are not given.

    Attributes:
        side: Side in pixels of the views that are made now, at most ``size``: smaller ones show the same, and the
            blur goes with them.
    """

    def __init__(
        self,
        size: int = 224,
        scale: tuple[float, float] | None = None,
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        hflip: float | None = None,
        vflip: float = 0.0,
        jitter_prob: float | None = None,
        brightness: float | None = None,
        contrast: float | None = None,
        saturation: float | None = None,
        hue: float | None = None,
        grayscale: float | None = None,
        blur: float | None = None,
        blur_sigma: tuple[float, float] = (0.1, 2.0),
        blur_kernel: int | None = None,
        solarize: float | None = None,
        erase: float = 0.0,
        erase_scale: tuple[float, float] = (0.02, 0.33),
        interpolation: Interpolation = "bilinear",
        form: Form = "exact",
        rotation: float = 0.0,
        policy: Policy | None = None,
        preset: Preset = "simclr",
    ) -> None:
        check_size(size)
        given = {
            "scale": scale, "hflip": hflip, "jitter_prob": jitter_prob, "brightness": brightness, "contrast": contrast,
            "saturation": saturation, "hue": hue, "grayscale": grayscale, "blur": blur, "solarize": solarize,
        }  # fmt: skip
        settings = resolve(preset, given)
        _check_range("scale", settings.scale, "shares of the area in (0, 1]", 1)
        _check_range("ratio", ratio, "two numbers above 0")
        _check_range("blur_sigma", blur_sigma, "two numbers of pixels above 0")
        _check_range("erase_scale", erase_scale, "shares of the area in (0, 1]", 1)
        probabilities = {**settings._asdict(), "vflip": vflip, "erase": erase}
        for name in (*_PROBABILITIES, "jitter_prob"):
            if not 0 <= probabilities[name] <= 1:
                raise ValueError(f"{name} is a probability in [0, 1], got {probabilities[name]}")
        for name in ("brightness", "contrast", "saturation"):
            if probabilities[name] < 0:
                raise ValueError(f"{name} is a strength from 0, got {probabilities[name]}")
        if not 0 <= settings.hue <= 0.5:
            raise ValueError(f"hue is a share of a full turn in [0, 0.5], got {settings.hue}")
        if not 0 <= rotation <= 180:
            raise ValueError(f"rotation is a number of degrees in [0, 180], got {rotation}")
        _check_choice("interpolation", interpolation, ("bilinear", "bicubic"))
        _check_choice("form", form, ("exact", "fused"))
        if blur_kernel is not None and (blur_kernel % 2 == 0 or not 1 <= blur_kernel < 2 * size):
            raise ValueError(
                f"blur_kernel is an odd number of pixels below twice the size, got {blur_kernel} for size {size}"
            )
        self.size = self.side = size
        self.scale = settings.scale
        self.ratio = ratio
        self.hflip = settings.hflip
        self.vflip = vflip
        self.jitter_prob = settings.jitter_prob
        self.brightness = settings.brightness
        self.contrast = settings.contrast
        self.saturation = settings.saturation
        self.hue = settings.hue
        self.grayscale = settings.grayscale
        self.blur = settings.blur
        self.blur_sigma = blur_sigma
        self.blur_kernel = blur_kernel
        self.solarize = settings.solarize
        self.erase = erase
        self.erase_scale = erase_scale
        self.interpolation: Interpolation = interpolation
        self.form: Form = form
        self.rotation = rotation
        self.policy = policy
        self.preset = preset

    def make(self, images: Images, keys: Int64[Tensor, " batch"]) -> Float[Tensor, "batch channels size size"]:
        return in_parts(self._render, images.pixels, self._draw(images.sizes, keys))

    def _draw(self, sizes: Tensor, keys: Tensor) -> _Choices:
        drawn = zip(_PROBABILITIES, uniform(streams(keys, *_PROBABILITIES)).unbind(-1), strict=True)
        chosen = {name: numbers < getattr(self, name) if getattr(self, name) else None for name, numbers in drawn}
        sigmas = jitter = erased = None
        if chosen["blur"] is not None:
            sigmas = uniform(fold_in(keys, "blur sigma"), None, *self.blur_sigma) * chosen["blur"]
            sigmas = sigmas * (self.side / self.size)
        if self.jitter_prob and (self.brightness or self.contrast or self.saturation or self.hue):
            jitter = draw_jitter(
                fold_in(keys, "jitter"), self.brightness, self.contrast, self.saturation, self.hue, self.jitter_prob
            )
        if chosen["erase"] is not None:
            whole = torch.full_like(sizes, self.side)
            erased = (
                random_erasing_boxes(whole, fold_in(keys, "erase box"), self.erase_scale) * chosen["erase"][:, None]
            )
        boxes = random_resized_crop_boxes(sizes, fold_in(keys, "crop"), self.scale, self.ratio)
        angles = uniform(fold_in(keys, "rotation"), None, -self.rotation, self.rotation) if self.rotation else None
        steps = self.policy.draw(fold_in(keys, "policy"), self.side) if self.policy else None
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
        is_grey = pixels.shape[1] == 1
        if drawn.jitter is not None:
            # what has no colours keeps what it has, as in torchvision
            jitter = drawn.jitter._replace(saturation=None, hue=None) if is_grey else drawn.jitter
            views = colour_jitter(views, jitter, self.form)
        if drawn.grayscale is not None and not is_grey:
            views = grayscale(views, drawn.grayscale)
        if drawn.sigmas is not None and not fused:
            views = gaussian_blur(views, drawn.sigmas, kernel)
        if drawn.solarize is not None:
            views = solarize(views, drawn.solarize)
        if drawn.erased is not None:
            views = erase(views, drawn.erased)
        return views

    def __repr__(self) -> str:
        defaults = PRESETS[self.preset]._asdict()
        parameters = inspect.signature(RandomView).parameters.values()
        values = [(each.name, getattr(self, each.name), defaults.get(each.name, each.default)) for each in parameters]
        changed = [f"{name}={value!r}" for name, value, default in values if name == "size" or value != default]
        return f"{type(self).__name__}({', '.join(changed)})"

    def _kernel(self) -> int:
        if self.blur_kernel is None:
            return max(3, self.side // 10 // 2 * 2 + 1)
        return max(0, self.blur_kernel * self.side // self.size - 1) // 2 * 2 + 1


@final
class Views(RandomView):
    """A distribution of views of which several may be drawn of each image.

    Args:
        count: How many are drawn, at least 1.
        **kwargs: See `RandomView`.
    """

    def __init__(self, count: int = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if count < 1:
            raise ValueError(f"views.count is {count}, expected at least 1")
        self.count = count


def _check_range(name: str, values: tuple[float, float], expected: str, highest: float = float("inf")) -> None:
    if not (len(values) == 2 and 0 < values[0] <= values[1] <= highest):
        raise ValueError(f"{name} is a range [low, high] of {expected}, got {list(values)}")


def _check_choice(name: str, value: str, choices: tuple[str, str]) -> None:
    if value not in choices:
        raise ValueError(f"{name} is {choices[0]!r} or {choices[1]!r}, got {value!r}{nearest(value, choices)}")
