"""Deep images: numbers of more than 8 bits, what a file says about them, and their way to bytes."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Range = tuple[float, float]
"""The number that is black, and the one that is white."""

_BITS, _PHOTOMETRIC, _MIN, _MAX, _SAMPLE_FORMAT, _SMIN, _SMAX, _NO_DATA = 258, 262, 280, 281, 339, 340, 341, 42113
_UNSIGNED, _SIGNED = 1, 2
_NO_NUMBER = -9999  # what stands for "no data" in most files that do not say so
_LARGEST = 1e30  # and what is larger is the largest number that there is
_MOST_MEASURED = 1024  # pixels along a side
_TRIMMED = 1e-4


class Depth(NamedTuple):
    """How the numbers of a deep image are stored.

    Attributes:
        kind: As NumPy calls it.
        header: The range that the file says, if it does.
        bits: How many of 16 bits count, as PNG says (sBIT).
        inverted: Whether the least number is white.
        no_data: The number that stands for none.
        transparent: The numbers, one for each channel, that are transparent.
    """

    kind: str
    header: Range | None = None
    bits: int | None = None
    inverted: bool = False
    no_data: float | None = None
    transparent: tuple[int, ...] | None = None


class Extremes(NamedTuple):
    """What the range of many images is found from: the kind of an image's numbers, what its file says, what it holds.

    Attributes:
        kind: As in `Depth`.
        header: As in `Depth`.
        bits: As in `Depth`.
        low: The least number, but for one in ten thousand pixels; infinite if there is no number at all.
        high: The largest.
    """

    kind: str
    header: Range | None
    bits: int | None
    low: float
    high: float


def depth_of(image: Image.Image) -> Depth | None:
    """How the numbers of an image are stored, if they have more than 8 bits or a sign; to be asked before it loads."""
    if image.format == "JPEG" or image.mode not in ("L", "I", "F", "RGB", "RGBA", "I;16", "I;16B", "I;16L", "I;16N"):
        return None
    tags: Any = getattr(image, "tag_v2", {}) if image.format == "TIFF" else {}
    kind = _kind(image, tags)
    if kind is None:
        return None
    transparent = image.info.get("transparency") if image.format == "PNG" else None
    return Depth(
        kind,
        _header(image, kind, tags),
        image.info.get("significant bits"),
        tags.get(_PHOTOMETRIC) == 0,
        _number(tags.get(_NO_DATA)),
        transparent if isinstance(transparent, tuple | None) else (int(transparent),),
    )


def raw_mode(image: Any) -> str:
    """How Pillow unpacks the pixels of an image that is not loaded; empty if it does not say."""
    args = image.tile[0].args if getattr(image, "tile", None) else ""
    first = args[0] if isinstance(args, tuple) and args else args
    return first if isinstance(first, str) else ""


def _kind(image: Image.Image, tags: Any) -> str | None:
    sign = tags.get(_SAMPLE_FORMAT, (_UNSIGNED,))[0]
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        return "uint16"  # Pillow has scaled those of PPM already
    if image.mode == "F":
        return "float32"
    if image.mode == "I":
        signed = "int16" if tags.get(_BITS, (32,))[0] == 16 else "int32"
        return "uint32" if tags and sign == _UNSIGNED else signed
    if image.mode == "L":
        return "int8" if sign == _SIGNED else None
    # "RGBa" would be divided by an opacity of 8 bits
    name, _, order = raw_mode(image).partition(";")
    return "uint16" if order in ("16L", "16B", "16N") and name in ("RGB", "RGBX", "RGBA", "R") else None


def _header(image: Image.Image, kind: str, tags: Any) -> Range | None:
    if image.format == "PPM" and kind == "uint16":
        return 0, 65535
    if tags.get(_BITS, (16,))[0] == 12:
        return 0, 4095
    lows, highs = ([_numbers(tags.get(tag)) for tag in pair] for pair in ((_SMIN, _MIN), (_SMAX, _MAX)))
    low, high = (next((each for each in found if each), None) for found in (lows, highs))
    found = (min(low) if low else 0.0, max(high)) if high else None
    # every number that there is: that says nothing
    return None if found is None or found == FULL[kind] or not found[0] < found[1] else found


def _numbers(value: Any) -> list[float]:
    values = value if isinstance(value, tuple) else () if value is None else (value,)
    with contextlib.suppress(TypeError, ValueError, ZeroDivisionError):
        numbers = [float(each) for each in values]
        return numbers if np.isfinite(numbers).all() else []
    return []


def _number(text: Any) -> float | None:
    with contextlib.suppress(TypeError, ValueError):
        return float(str(text).strip("\0 "))
    return None


FULL: dict[str, Range] = {
    "int8": (-128, 127),
    "uint16": (0, 65535),
    "int16": (-32768, 32767),
    "uint32": (0, 2**32 - 1),
    "int32": (-(2**31), 2**31 - 1),
    "float32": (0.0, 1.0),
}
"""All numbers of each kind; of floating point those that are usual."""


def numbers_of(image: Image.Image, low_bytes: Image.Image | None, depth: Depth) -> NDArray[Any]:
    """The numbers of an image, or of a part of it.

    Args:
        image: Loaded; of three channels, the high bytes.
        low_bytes: Of three channels, the low bytes.
        depth: How they are stored.

    Returns:
        Array ``[height, width]`` or ``[height, width, 3]``.
    """
    numbers = np.asarray(image)
    if numbers.ndim == 3:
        high = numbers[..., :3].astype(np.uint16)
        return high * 257 if low_bytes is None else high << 8 | np.asarray(low_bytes)[..., :3]
    return numbers.view(depth.kind) if depth.kind in ("int8", "uint32") else numbers


def to_bytes(numbers: NDArray[Any], depth: Depth, scale: Range) -> NDArray[np.uint8]:
    """Numbers to bytes: no data is black, what is transparent lies on white."""
    if depth.kind == "uint16" and numbers.size > 2**16 and (numbers.ndim == 2 or depth.transparent is None):
        return _table(depth, (scale[0], scale[1]))[numbers]
    return _computed(numbers, depth, scale)


@lru_cache(maxsize=8)
def _table(depth: Depth, scale: Range) -> NDArray[np.uint8]:
    """The byte of each number of 16 bits, where an image has more of them than there are."""
    return _computed(np.arange(2**16, dtype=np.uint16)[None], depth, scale)[0]


def _computed(numbers: NDArray[Any], depth: Depth, scale: Range) -> NDArray[np.uint8]:
    low, high = scale
    with np.errstate(invalid="ignore", over="ignore"):
        scaled = np.rint(np.clip((numbers.astype(np.float64) - low) * (255.0 / (high - low)), 0, 255))
    if depth.inverted:
        scaled = 255 - scaled
    scaled = np.where(_valid(numbers, depth), scaled, 0).astype(np.uint8)
    if depth.transparent is not None:
        on_white = np.all(np.atleast_3d(numbers) == np.array(depth.transparent), axis=2)
        scaled[on_white] = 255
    return scaled


def _valid(numbers: NDArray[Any], depth: Depth) -> NDArray[np.bool_] | bool:
    """Where there are data."""
    valid: Any = True
    if depth.no_data is not None:
        valid = numbers != depth.no_data
    if depth.kind in ("float32", "int32", "int16"):
        valid &= numbers != _NO_NUMBER
    if depth.kind == "float32":
        valid &= np.isfinite(numbers) & (np.abs(numbers) < _LARGEST)
    return valid


def has_numbers(numbers: NDArray[Any], depth: Depth) -> bool:
    """Whether any pixel holds data."""
    return bool(np.any(_valid(numbers, depth)))


def extremes(image: Image.Image, low_bytes: Image.Image | None, depth: Depth) -> Extremes:
    """The least and the largest number of an image, but for single pixels."""
    size = min(image.width, _MOST_MEASURED), min(image.height, _MOST_MEASURED)
    if size != image.size:
        image = image.resize(size, Image.Resampling.NEAREST)
        low_bytes = low_bytes and low_bytes.resize(size, Image.Resampling.NEAREST)
    numbers = numbers_of(image, low_bytes, depth)
    valid = np.broadcast_to(_valid(numbers, depth), numbers.shape)
    numbers = np.sort(numbers[valid], axis=None)
    trimmed = max(1, int(len(numbers) * _TRIMMED)) if len(numbers) >= 1000 else 0
    low, high = (float(numbers[trimmed]), float(numbers[-1 - trimmed])) if len(numbers) else (np.inf, -np.inf)
    return Extremes(depth.kind, depth.header, depth.bits, low, high)


def common_range(found: Sequence[Extremes], use_header: bool = True) -> Range:
    """One range for images of one kind of numbers.

    Args:
        found: Some of them.
        use_header: Whether what their files say counts, if all say something.
    """
    kind = found[0].kind
    headers = [each.header for each in found if each.header]
    if kind == "int8":
        return FULL[kind]
    if use_header and len(headers) == len(found):
        return min(low for low, _ in headers), max(high for _, high in headers)
    low, high = min(each.low for each in found), max(each.high for each in found)
    bits = max((each.bits or 0 for each in found), default=0)
    if use_header and bits:
        # numbers of so many bits are to be stored as 16; some programs do not
        return 0, float(2**bits - 1) if high < 2**bits else 65535
    return _rounded(kind, low, high)


def _rounded(kind: str, low: float, high: float) -> Range:
    """A range that is not wider than it must be, and keeps a black and a white that are meant."""
    is_float = kind == "float32"
    whites = [1.0, 255.0, 65535.0] if is_float else [float(2**bits - 1) for bits in (8, 10, 12, 14, 16)]
    if not low < high:  # of one number nobody knows what it means
        white = next((white for white in whites if high <= white), FULL[kind][1]) if is_float else FULL[kind][1]
        return (min(0.0, low), max(white, high)) if np.isfinite(high) else FULL[kind]
    near = (white for white in whites if 0.99 * white <= high <= (1.01 * white if is_float else white))
    high = next(near, high)
    # a black of 0 costs at most a fifth of the levels
    return (0.0 if 0 <= low <= high / 5 else low), high
