"""Pixel conversion of Pillow images: to 8 bits a channel, and to a bounded size."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import cast

import numpy as np
from PIL import Image

_STRIP = 1 << 20  # pixels that are converted at once where that takes more memory than the image itself


def eight_bit(image: Image.Image, mode: str) -> Image.Image:
    """Any mode of Pillow to the mode that is wanted, or to "L", which is to be converted later."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _scale_to_bytes(image)
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        return _in_strips(image, mode, lambda part: _on_white(part).convert(mode))
    if image.mode == "LAB":
        image = image.convert("RGB")  # the only way that Pillow knows
    return image if image.mode in ("L", mode) else image.convert(mode)


def _on_white(image: Image.Image) -> Image.Image:
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")


def _scale_to_bytes(image: Image.Image) -> Image.Image:
    """Numbers of more than 8 bits to bytes.

    The file does not say what is white: numbers that fit into 16 bits (integers) or into 0 to 1, 0 to 255, 0 to 65535
    (floating point, the narrowest) are taken to fill that range; any others are stretched from minimum to maximum.
    """
    extremes = [(float(part.min()), float(part.max())) for part in map(np.asarray, _strips(image))]
    low, high = (float(value) for value in (np.min(extremes), np.max(extremes)))
    if not np.isfinite(low + high):
        raise ValueError("pixels that are not finite")
    whites = (1.0, 255.0, 65535.0) if image.mode == "F" else (65535.0,)
    white = next((white for white in whites if low >= 0 and high <= white), None)
    black, white = (0.0, white) if white is not None else (low, high - low or 1.0)

    def scale(part: Image.Image) -> Image.Image:
        numbers = np.asarray(part).astype(np.float64)
        return Image.fromarray(np.rint((numbers - black) * (255.0 / white)).astype(np.uint8))

    return _in_strips(image, "L", scale)


def _strips(image: Image.Image) -> Iterator[Image.Image]:
    """The image in parts of whole rows; as it is, if it is small."""
    rows = max(1, _STRIP // image.width)
    if rows >= image.height:
        yield image
        return
    for top in range(0, image.height, rows):
        yield image.crop((0, top, image.width, min(top + rows, image.height)))


def _in_strips(image: Image.Image, mode: str, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """The converted image, without the memory for all that comes in between."""
    done, top = None, 0
    for part in map(convert, _strips(image)):
        if part.size == image.size:
            return part
        done = done or Image.new(mode, image.size)
        done.paste(part, (0, top))
        top += part.height
    assert done is not None
    return done


def reduced_size(width: int, height: int, image_size: int) -> tuple[int, int]:
    """Width and height after the short side is reduced to at most ``image_size``."""
    scale = min(1.0, image_size / min(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def reduce(image: Image.Image, image_size: int | None) -> Image.Image:
    """An image whose short side is at most ``image_size``, and whose long side at most twice that."""
    if image_size is None:
        return image
    width, height = image.size
    full = reduced_size(width, height, image_size)
    size = (min(full[0], 2 * image_size), min(full[1], 2 * image_size))
    if size == image.size:
        return image
    if full == image.size:  # nothing to reduce: whole pixels are cut off
        left, top = (width - size[0]) // 2, (height - size[1]) // 2
        return image.crop((left, top, left + size[0], top + size[1]))
    # the part of the original that stays, which need not end between two of its pixels
    kept = (width * size[0] / full[0], height * size[1] / full[1])
    left, top = (width - kept[0]) / 2, (height - kept[1]) / 2
    box = cast(tuple[float, float, float, float], (left, top, left + kept[0], top + kept[1]))
    return image.resize(size, Image.Resampling.BICUBIC, box=box, reducing_gap=3.0)
