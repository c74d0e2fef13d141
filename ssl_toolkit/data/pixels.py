"""Pixel conversion of Pillow images: to 8 bits a channel, and to a bounded size."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import cast

import numpy as np
from PIL import Image

from ssl_toolkit.data.deep import Depth, Range, common_range, extremes, has_numbers, numbers_of, to_bytes

_STRIP = 1 << 20  # pixels that are converted at once where that takes more memory than the image itself


def eight_bit(
    image: Image.Image,
    mode: str,
    depth: Depth | None = None,
    low_bytes: Image.Image | None = None,
    scale: Range | None = None,
) -> Image.Image:
    """Any mode of Pillow to the mode that is wanted, or to "L", which is to be converted later.

    Args:
        image: Loaded.
        mode: "RGB" or "L".
        depth: How numbers of more than 8 bits are stored, if the image has such.
        low_bytes: The low bytes of three channels of 16 bits, of which ``image`` has the high ones.
        scale: The range of such numbers; that of the image itself by default.
    """
    if depth is not None:
        to_scale = scale or common_range([extremes(image, low_bytes, depth)])
        target = mode if image.mode in ("RGB", "RGBA") else "L"
        if depth.kind == "float32" and not any(has_numbers(np.asarray(part), depth) for part in _strips(image)):
            raise ValueError("no pixel holds a number")
        others = () if low_bytes is None else (low_bytes,)
        return _in_strips(image, target, lambda *parts: _scaled(depth, to_scale, *parts).convert(target), *others)
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        return _in_strips(image, mode, lambda part: _on_white(part).convert(mode))
    if image.mode == "LAB":
        image = image.convert("RGB")  # the only way that Pillow knows
    return image if image.mode in ("L", mode) else image.convert(mode)


def _scaled(depth: Depth, scale: Range, image: Image.Image, low_bytes: Image.Image | None = None) -> Image.Image:
    scaled = Image.fromarray(to_bytes(numbers_of(image, low_bytes, depth), depth, scale))
    if image.mode != "RGBA":
        return scaled
    scaled.putalpha(image.getchannel("A"))
    return _on_white(scaled)


def _on_white(image: Image.Image) -> Image.Image:
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")


def _strips(image: Image.Image) -> Iterator[Image.Image]:
    """The image in parts of whole rows; as it is, if it is small."""
    rows = max(1, _STRIP // image.width)
    if rows >= image.height:
        yield image
        return
    for top in range(0, image.height, rows):
        yield image.crop((0, top, image.width, min(top + rows, image.height)))


def _in_strips(image: Image.Image, mode: str, convert: Callable[..., Image.Image], *others: Image.Image) -> Image.Image:
    """The converted image, without the memory for all that comes in between; others of its size go along."""
    done, top = None, 0
    for parts in zip(*map(_strips, (image, *others)), strict=True):
        part = convert(*parts)
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
