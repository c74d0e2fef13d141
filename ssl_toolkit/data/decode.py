"""From an image file to bytes: upright, 8 bits a channel, reduced to a bounded size.

Pillow decodes, because torchvision's PNG decoder crashes the process on a corrupt file (one flipped byte is enough,
torchvision 0.29.2), and only the formats below are tried.
"""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
MAX_PIXELS = 64 * 1024 * 1024
"""Larger images are refused from their header: decoding one would take more than a gigabyte."""

_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_PILLOW_WARNINGS = ("ignore", None, Warning, re.compile(r"PIL\."), 0)


class BadImage(Exception):
    """An image that cannot be decoded.

    Attributes:
        path: The name of the image in its source.
        reason: What is wrong with it, in a few words.
    """

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


def decode_file(
    path: str | Path | IO[bytes], name: str, image_size: int | None = None, channels: int = 3
) -> NDArray[np.uint8]:
    """Decodes an image file.

    The EXIF orientation is applied, transparency is laid on white, 16 bits are scaled to 8. The short side is reduced
    to at most ``image_size`` (never enlarged), and the long side is then cropped at both ends to at most twice that.

    Args:
        path: The file, or an open binary file.
        name: What to call it in messages.
        image_size: In pixels; None keeps every pixel.
        channels: 3 for RGB, 1 for luminance (ITU-R 601).

    Returns:
        uint8 array of shape ``[height, width, channels]``.

    Raises:
        BadImage: The file is missing, truncated, too large, or not an image.
    """
    try:
        if not isinstance(path, (str, Path)):
            return _decode(path, image_size, channels)
        with Path(path).open("rb") as file:
            return _decode(file, image_size, channels)
    except BadImage as error:
        raise BadImage(name, error.reason) from None
    except Exception as error:
        # On damaged files Pillow raises nearly everything: OSError, SyntaxError, ValueError, struct.error, ...
        raise BadImage(name, _reason(error)) from None


def to_array(image: Image.Image, image_size: int | None = None, channels: int = 3) -> NDArray[np.uint8]:
    """The same for an image that Pillow has opened already."""
    image.load()
    orientation = _orientation(image)  # asked after loading: Pillow turns a TIFF upright itself while it loads
    image = _reduce(_eight_bit(image, "L" if channels == 1 else "RGB"), image_size)
    if orientation in _UPRIGHT:
        image = image.transpose(_UPRIGHT[orientation])
    array = np.array(image, dtype=np.uint8)
    return array[:, :, None] if array.ndim == 2 else array


def _decode(file: IO[bytes], image_size: int | None, channels: int) -> NDArray[np.uint8]:
    _silence_pillow()
    with Image.open(file, formats=FORMATS) as image:
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise BadImage("", f"{width} x {height} pixels, more than {MAX_PIXELS // 2**20} million")
        if image_size is not None:
            # the JPEG decoder itself reduces by 2, 4 or 8, staying at twice the size that is wanted
            image.draft(None, _reduced_size(width, height, 2 * image_size))
        return to_array(image, image_size, channels)


def _silence_pillow() -> None:
    # warnings.catch_warnings is not safe in threads; a filter that is put in once and left there is
    if _PILLOW_WARNINGS not in warnings.filters:
        warnings.filterwarnings("ignore", module=r"PIL\.")


def _reason(error: Exception) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return f"not an image in one of the formats {' '.join(FORMATS)}"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 120 else text[:117] + "..."


def _orientation(image: Image.Image) -> Any:
    try:
        return image.getexif().get(_ORIENTATION)
    except Exception:
        return None  # the pixels are good even if the metadata are not


def _eight_bit(image: Image.Image, mode: str) -> Image.Image:
    """Any mode of Pillow to "L" or "RGB"."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = Image.fromarray(_scale_to_bytes(np.asarray(image)))
    elif image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        layer = image.convert("RGBA")
        image = Image.new("RGBA", layer.size, "white")
        image.alpha_composite(layer)
        image = image.convert("RGB")
    return image if image.mode == mode else image.convert(mode)


def _scale_to_bytes(values: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Numbers of more than 8 bits to bytes.

    The file does not say what is white: numbers that fit into 16 bits (integers) or into 0 to 1, 0 to 255, 0 to 65535
    (floating point, the narrowest) are taken to fill that range; any others are stretched from minimum to maximum.
    """
    numbers = values.astype(np.float64)
    low, high = float(numbers.min()), float(numbers.max())
    if not np.isfinite(low + high):
        raise ValueError("pixels that are not finite")
    whites = (1.0, 255.0, 65535.0) if values.dtype.kind == "f" else (65535.0,)
    white = next((white for white in whites if low >= 0 and high <= white), None)
    if white is None:
        numbers, white = numbers - low, high - low
    return np.rint(numbers * (255.0 / white)).astype(np.uint8)


def _reduced_size(width: int, height: int, image_size: int) -> tuple[int, int]:
    """Width and height after the short side is reduced to at most ``image_size``."""
    scale = min(1.0, image_size / min(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def _reduce(image: Image.Image, image_size: int | None) -> Image.Image:
    if image_size is None:
        return image
    width, height = image.size
    full = _reduced_size(width, height, image_size)
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
