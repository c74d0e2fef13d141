"""Mask files: PNG images whose values are class numbers, and where the pixels of a decoded image come from."""

from __future__ import annotations

from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ssl_toolkit.data.decode import orientation_of, with_opened
from ssl_toolkit.data.pixels import reduced_size

IGNORE = 255
"""The value of pixels that do not count."""

_GREY = 0  # colour type of the header (PNG specification, section 11.2.1)
# For each EXIF orientation: whether the axes are exchanged, and whether rows and columns of the upright image run the
# other way than the stored axis that they are.
_TURNED = {
    2: (False, False, True),
    3: (False, True, True),
    4: (False, True, False),
    5: (True, False, False),
    6: (True, False, True),
    7: (True, True, True),
    8: (True, True, False),
}


class Stored(NamedTuple):
    """How an image file is stored.

    Attributes:
        width: In pixels, before it is turned upright.
        height: Likewise.
        orientation: Of EXIF; 1 is upright.
    """

    width: int
    height: int
    orientation: int

    @property
    def upright(self) -> tuple[int, int]:
        """Height and width of the upright image."""
        is_exchanged = _TURNED.get(self.orientation, (False,))[0]
        return (self.width, self.height) if is_exchanged else (self.height, self.width)


def stored_as(path: str | Path, name: str) -> Stored:
    """How an image file is stored, from its header.

    Args:
        path: The file.
        name: What to call it in messages.

    Raises:
        BadImage: It cannot be read.
    """

    def look(image: Image.Image, _: IO[bytes]) -> Stored:
        # Pillow turns a TIFF itself, and says the size after that
        orientation = 1 if image.format == "TIFF" else orientation_of(image)
        return Stored(image.width, image.height, orientation if orientation in _TURNED else 1)

    return with_opened(path, name, look)


def read_mask(path: str | Path, name: str) -> NDArray[np.uint8]:
    """The class number of each pixel of a mask, upright: the grey value, or the place in the palette.

    Args:
        path: A PNG file of one channel of 1, 2, 4 or 8 bits, or with a palette.
        name: What to call it in messages.

    Returns:
        uint8 array of shape ``[height, width]``.

    Raises:
        BadImage: It cannot be read, or is no such file.
    """

    def load(image: Image.Image, file: IO[bytes]) -> NDArray[np.uint8]:
        if image.format != "PNG":
            raise ValueError(f"a {image.format} file, but masks are PNG, which keeps each value as it is")
        bits, colour_type = _header(file)
        if image.mode not in ("1", "L", "P"):
            what = "16 bits a pixel" if image.mode.startswith("I") else f"the channels {image.mode}"
            raise ValueError(
                f"it has {what}, but a mask has one channel of at most 8 bits, or a palette, whose values are class "
                "numbers"
            )
        turned = _TURNED.get(orientation_of(image), (False, False, False))
        values = np.asarray(image).astype(np.uint8)
        if colour_type == _GREY and bits in (2, 4):
            values //= 255 // (2**bits - 1)  # Pillow has spread them up to 255
        return np.ascontiguousarray(_upright(values, *turned))

    return with_opened(path, name, load)


def _header(file: IO[bytes]) -> tuple[int, int]:
    """Bits of a sample and colour type, as the file says."""
    place = file.tell()
    file.seek(24)
    bits, colour_type = file.read(2)
    file.seek(place)
    return bits, colour_type


def _upright(values: NDArray[np.uint8], exchanged: bool, rows_back: bool, columns_back: bool) -> NDArray[np.uint8]:
    values = values.T if exchanged else values
    values = values[::-1] if rows_back else values
    return values[:, ::-1] if columns_back else values


def decoded_places(
    stored: Stored, image_size: int, height: int, width: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Which pixel of an upright original is nearest to the centre of each pixel of the image that is decoded from it.

    Args:
        stored: How the file is stored.
        image_size: To which its short side is reduced, as `ssl_toolkit.data.pixels.reduce` does.
        height: Of the decoded, upright image.
        width: Likewise.

    Returns:
        The rows, int64 array of shape ``[height]``, and the columns, of shape ``[width]``.

    Raises:
        ValueError: An image of such a size does not come of it.
    """
    exchanged, rows_back, columns_back = _TURNED.get(stored.orientation, (False, False, False))
    original = (stored.width, stored.height)
    full = reduced_size(*original, image_size)
    decoded = (height, width) if exchanged else (width, height)
    axes = []
    for num, reduced, found in zip(original, full, decoded, strict=True):
        size = min(reduced, 2 * image_size)
        # of a JPEG the decoder may have rounded the sides once before
        if abs(size - found) > 1:
            raise ValueError(
                f"an image of {stored.width} x {stored.height} pixels is {found} pixels wide or high when decoded, "
                f"expected {size}: has the file changed?"
            )
        if full == original:
            axes.append(np.arange(found) + (num - size) // 2)
            continue
        kept = num * size / reduced
        places = np.floor((num - kept) / 2 + (np.arange(found) + 0.5) * kept / found)
        axes.append(places.astype(np.int64).clip(0, num - 1))
    columns, rows = axes[::-1] if exchanged else axes
    height, width = stored.upright
    return (
        height - 1 - rows[::-1] if rows_back else rows,
        width - 1 - columns[::-1] if columns_back else columns,
    )
