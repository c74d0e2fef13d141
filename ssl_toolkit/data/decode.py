"""Image decoding: from a file to bytes, upright, 8 bits a channel, reduced to a bounded size.

Pillow decodes, because torchvision's PNG decoder crashes the process on a corrupt file (one flipped byte is enough,
torchvision 0.29.2), and only the formats below are tried. What a file is, its content says and not its name.
"""

from __future__ import annotations

import contextlib
import errno
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ssl_toolkit.data.deep import FULL, Depth, Extremes, Range, depth_of, extremes
from ssl_toolkit.data.formats import FORMATS
from ssl_toolkit.data.limits import MAX_PIXELS, SMALL, check_bytes, check_coded, check_pixels, check_tile
from ssl_toolkit.data.pillow_gaps import low_bytes_of, prepare, silence_libtiff, why_unknown
from ssl_toolkit.data.pixel_budget import PixelBudget
from ssl_toolkit.data.pixels import eight_bit, reduce, reduced_size
from ssl_toolkit.errors import printable
from ssl_toolkit.io.atomic import open_plain

DECODING = 2
"""Counts the changes of what images become: those that were decoded before are decoded again."""

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


_Result = TypeVar("_Result")

# what a machine says that is out of its means, whatever the file
_OUT_OF_MEANS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})


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
        return f"{printable(self.path)}: {self.reason}"


def decode_file(
    path: str | Path | IO[bytes],
    name: str,
    image_size: int | None = None,
    channels: int = 3,
    ranges: Mapping[str, Range] | None = None,
) -> NDArray[np.uint8]:
    """Decodes an image file.

    The EXIF orientation is applied, transparency is laid on white, more than 8 bits are scaled to 8. The short side is
    reduced to at most ``image_size`` (never enlarged), and the long side is then cropped at both ends to at most twice
    that.

    Args:
        path: The file, or an open binary file.
        name: What to call it in messages.
        image_size: In pixels; None keeps every pixel.
        channels: 3 for RGB, 1 for luminance (ITU-R 601).
        ranges: For each kind of numbers of more than 8 bits (``uint16``) those that become black and white; by default
            what the file says, or what it holds.

    Returns:
        uint8 array of shape ``[height, width, channels]``.

    Raises:
        BadImage: The file is missing, truncated, too large, or not an image, or no file at all, but a pipe or a device.
        MemoryError: There is no memory for it.
        OSError: Too many files are open.
    """
    return _opened(path, name, lambda file: _decode(file, image_size, channels, ranges))


class Contents(NamedTuple):
    """What an image file holds.

    Attributes:
        extremes: Of numbers of more than 8 bits; None if they are bytes, which is seen from the header.
        further_pages: How many pages or frames follow the first, which is the one that is decoded.
    """

    extremes: Extremes | None
    further_pages: int


def look_at(path: str | Path | IO[bytes], name: str) -> Contents:
    """What an image file holds.

    Args:
        path: The file, or an open binary file.
        name: What to call it in messages.

    Raises:
        BadImage: As for `decode_file`.
    """
    return _opened(path, name, _look_at)


def with_opened(
    path: str | Path | IO[bytes], name: str, action: Callable[[Image.Image, IO[bytes]], _Result]
) -> _Result:
    """What an action makes of an image that is opened and known not to be too large, but not loaded.

    Args:
        path: The file, or an open binary file.
        name: What to call it in messages.
        action: What is done with it and its file.

    Raises:
        BadImage: As for `decode_file`, or the action has raised a ValueError, whose text is the reason.
    """

    def act(file: IO[bytes]) -> _Result:
        with _checked(file) as image:
            return action(image, file)

    return _opened(path, name, act)


def _opened(path: str | Path | IO[bytes], name: str, action: Callable[[IO[bytes]], _Result]) -> _Result:
    """What an action makes of a file."""
    try:
        if not isinstance(path, (str, Path)):
            return action(path)
        with open_plain(path) as file:
            return action(file)
    except BadImage as error:
        raise BadImage(name, error.reason) from None
    except Exception as error:
        if not_its_fault(error):
            raise
        # On damaged files Pillow raises nearly everything: OSError, SyntaxError, ValueError, struct.error, ...
        raise BadImage(name, _reason(error)) from None


def not_its_fault(error: Exception) -> bool:
    """Whether reading an image failed for want of memory or of open files, which says nothing of the image."""
    return isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in _OUT_OF_MEANS)


def to_array(image: Image.Image, image_size: int | None = None, channels: int = 3) -> NDArray[np.uint8]:
    """The same for an image that Pillow has opened already."""
    check_pixels(image.width, image.height)
    return _to_array(image, image_size, channels, depth_of(image))


def _to_array(
    image: Image.Image,
    image_size: int | None,
    channels: int,
    depth: Depth | None,
    low_bytes: Image.Image | None = None,
    scale: Range | None = None,
) -> NDArray[np.uint8]:
    mode = "L" if channels == 1 else "RGB"
    with _PIXELS.held(image.width * image.height):
        image.load()
        if low_bytes is not None:
            low_bytes.load()
        orientation = orientation_of(image)  # asked after loading: Pillow turns a TIFF upright itself while it loads
        image = reduce(eight_bit(image, mode, depth, low_bytes, scale), image_size)
    image = image if image.mode == mode else image.convert(mode)  # grey takes a quarter of the memory until here
    if orientation in _UPRIGHT:
        image = image.transpose(_UPRIGHT[orientation])
    array = np.array(image, dtype=np.uint8)
    return array[:, :, None] if array.ndim == 2 else array


def _decode(
    file: IO[bytes], image_size: int | None, channels: int, ranges: Mapping[str, Range] | None
) -> NDArray[np.uint8]:
    with _checked(file) as image:
        if image_size is not None:
            # the JPEG decoder itself reduces by 2, 4 or 8, staying at twice the size that is wanted
            image.draft(None, reduced_size(*image.size, 2 * image_size))
        depth = depth_of(image)
        if depth is None:
            return _to_array(image, image_size, channels, None)
        scale = None if ranges is None else ranges.get(depth.kind) or depth.header or FULL[depth.kind]
        if image.mode == "RGB" and scale == FULL[depth.kind] and depth.transparent is None:
            return _to_array(image, image_size, channels, None)  # the high bytes, which Pillow keeps, are all of it
        with low_bytes_of(image, file) as low_bytes:
            return _to_array(image, image_size, channels, depth, low_bytes, scale)


def _look_at(file: IO[bytes]) -> Contents:
    with _checked(file) as image:
        depth, found = depth_of(image), None
        if depth is not None:
            with low_bytes_of(image, file) as low_bytes, _PIXELS.held(image.width * image.height):
                image.load()
                if low_bytes is not None:
                    low_bytes.load()
                found = extremes(image, low_bytes, depth)
    with _checked(file) as image:  # to look for pages may move on to another
        return Contents(found, getattr(image, "n_frames", 1) - 1)


@contextlib.contextmanager
def _checked(file: IO[bytes]) -> Iterator[Image.Image]:
    """An image that is opened, not loaded, and not too large."""
    _silence_pillow()
    check_bytes(file)
    try:
        image = Image.open(file, formats=FORMATS)
    except Image.UnidentifiedImageError:
        raise BadImage("", why_unknown(file)) from None
    with image:
        check_pixels(*image.size)
        prepare(image, file)
        if image.format == "TIFF":
            check_tile(image)
        elif image.format == "AVIF":
            check_coded(image, file)
        yield image


_PIXELS = PixelBudget(2 * MAX_PIXELS, SMALL)


def _silence_pillow() -> None:
    # warnings.catch_warnings is not safe in threads; a filter that is put in once and left there is
    if _PILLOW_WARNINGS not in warnings.filters:
        warnings.filterwarnings("ignore", module=r"PIL\.")
        silence_libtiff()


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 120 else text[:117] + "..."


def orientation_of(image: Image.Image) -> Any:
    """The EXIF orientation of an image: a number from 1 to 8, or None, or what a damaged file says."""
    try:
        return image.getexif().get(_ORIENTATION)
    except Exception:
        return None  # the pixels are good even if the metadata are not
