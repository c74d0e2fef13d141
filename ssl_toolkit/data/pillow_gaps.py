"""What Pillow leaves out or gets wrong about files with more than 8 bits, and why it does not know a file."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterator
from typing import IO, Any

from PIL import Image, TiffImagePlugin

from ssl_toolkit.data.deep import raw_mode
from ssl_toolkit.data.formats import FORMATS

_WIDTH, _BITS, _PHOTOMETRIC, _SAMPLES, _PLANAR, _FORMAT = 256, 258, 262, 277, 284, 339
_NUMBERS = {1: "unsigned integers", 2: "signed integers", 3: "floating point", 5: "complex integers", 6: "complex"}
_HEAD = 1 << 16  # bytes before the pixels of a PNG that are searched
_ORDERS = {"16L": "16B", "16B": "16L", "16N": "16B" if sys.byteorder == "little" else "16L"}
_GREY_LEVELS = {"L;2": 85, "L;4": 17}


def prepare(image: Any, file: IO[bytes]) -> None:
    """Completes what Pillow knows of an image that is opened and not loaded."""
    mode = raw_mode(image)
    if image.format == "PNG":
        if mode in _GREY_LEVELS and isinstance(image.info.get("transparency"), int):
            # Pillow spreads the pixels over 8 bits, and not the level that is transparent
            image.info["transparency"] *= _GREY_LEVELS[mode]
        if mode.endswith("16B"):
            image.info["significant bits"] = _significant_bits(image, file)
    elif image.format == "TIFF" and image.tag_v2.get(_PLANAR) == 2 and _has_deep_bands(image):
        if image.mode != "RGB" or any(tile.codec_name != "raw" for tile in image.tile):
            raise ValueError(
                "16-bit bands one after the other, compressed or of 4, are not read; save them interleaved"
            )
        order = "16L" if image.tag_v2.prefix == b"II" else "16B"
        image.tile = [_with_mode(tile, f"{tile.args[0]};{order}") for tile in image.tile]


def _has_deep_bands(image: Any) -> bool:
    return len(image.getbands()) > 1 and 16 in image.tag_v2.get(_BITS, ())


@contextlib.contextmanager
def low_bytes_of(image: Any, file: IO[bytes]) -> Iterator[Image.Image | None]:
    """Of an image with three channels of 16 bits, of which Pillow keeps the high bytes, one of the low bytes."""
    if image.mode not in ("RGB", "RGBA"):
        yield None
        return
    with Image.open(file, formats=[image.format]) as other:
        other.tile = [  # pyright: ignore[reportAttributeAccessIssue] - of every image that is read from a file
            _with_mode(tile, f"{name};{_ORDERS[order]}")
            for tile in image.tile
            for name, _, order in [_mode(tile).partition(";")]
        ]
        yield other


def _mode(tile: Any) -> str:
    return tile.args[0] if isinstance(tile.args, tuple) else tile.args


def _with_mode(tile: Any, mode: str) -> Any:
    return tile._replace(args=(mode, *tile.args[1:]) if isinstance(tile.args, tuple) else mode)


def _significant_bits(image: Any, file: IO[bytes]) -> int | None:
    """What the chunk sBIT of a PNG says (PNG, third edition, 11.3.2.7); None if there is none."""
    file.seek(0)
    _, found, chunk = file.read(min(_HEAD, image.tile[0].offset)).partition(b"sBIT")
    bits = max(chunk[: len(image.getbands())], default=0)
    return bits if found and 0 < bits < 16 else None


def why_unknown(file: IO[bytes]) -> str:
    """Why Pillow does not know a file: what is special about a TIFF, or that it is no image."""
    file.seek(0)
    head = file.read(16)
    if head[:4] in TiffImagePlugin.PREFIXES:
        with contextlib.suppress(Exception):
            return _about_tiff(file, head)
        return "a TIFF without a directory that can be read"
    return f"not an image in one of the formats {' '.join(FORMATS)}"


def _about_tiff(file: IO[bytes], head: bytes) -> str:
    tags: Any = TiffImagePlugin.ImageFileDirectory_v2(head if head[2] == 43 or head[3] == 43 else head[:8])
    file.seek(tags.next)
    tags.load(file)
    if _WIDTH not in tags:
        return "a TIFF without the width of an image"
    bits = tags.get(_BITS, (1,))
    bands = int(tags.get(_SAMPLES, len(bits)))
    numbers = _NUMBERS.get(tags.get(_FORMAT, (1,))[0], "numbers of an unknown kind")
    per_band = f"{bits[0]} bits" if len(set(bits)) == 1 else "different bits"
    return (
        f"a TIFF of {bands} band{'s' * (bands != 1)} of {per_band} ({numbers}), which is not read; "
        "save it with 1 or 3 bands of 8 or 16 bits"
    )


def silence_libtiff() -> None:
    """Keeps libtiff from printing lines without a file's name; what it finds comes as an exception, too."""
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(os.fspath(Image.core.__file__))
        for handler in (library.TIFFSetErrorHandler, library.TIFFSetWarningHandler):
            handler.argtypes, handler.restype = [ctypes.c_void_p], ctypes.c_void_p
            handler(None)
