"""Limits of what is decoded: each check refuses a file that would take far more memory than an image is worth.

They raise a ValueError whose text says what is wrong with the file, in a few words.
"""

from __future__ import annotations

import os
import re
from typing import IO, Any

from PIL import Image

from ssl_toolkit.data.avif import coded_sizes
from ssl_toolkit.data.formats import is_image

MAX_PIXELS = 64 * 1024 * 1024
"""Larger images are refused from their header: decoding one would take more than a gigabyte."""
MAX_BYTES = 512 * 1024 * 1024
"""Larger files are refused unread: so much takes the largest image without compression, at 16 bits a channel."""
SMALL = 4 << 20
"""Pixels that no care is taken of."""

_MOST_COMMENTS = 1 << 16  # bytes
_TILE_WIDTH, _TILE_LENGTH = 322, 323


def check_pixels(width: int, height: int) -> None:
    """Refuses more than `MAX_PIXELS`."""
    if width * height > MAX_PIXELS:
        raise ValueError(f"{width} x {height} pixels, more than {MAX_PIXELS // 2**20} million")


def check_bytes(file: IO[bytes]) -> None:
    """Refuses what takes much memory before Pillow has said how large the image is."""
    num_bytes = file.seek(0, os.SEEK_END)
    file.seek(0)
    if num_bytes == 0:
        raise ValueError("empty file")
    if num_bytes > MAX_BYTES:
        raise ValueError(f"a file of {num_bytes // 2**20} MiB, more than {MAX_BYTES // 2**20}")
    # the decoder of WEBP makes two canvases as soon as the file is opened
    head = file.read(30)
    check_pixels(*_webp_size(head))
    if head[:1] == b"P" and is_image(head):
        _check_comments(head + file.read(_MOST_COMMENTS))
    file.seek(0)


def _check_comments(block: bytes) -> None:
    """Refuses a PPM with long comments before its numbers, which Pillow reads byte by byte."""
    numbers = re.sub(rb"#[^\r\n]*", b"", block).split(maxsplit=4)
    if len(block) > _MOST_COMMENTS and len(numbers) < 4:
        raise ValueError(f"comments of more than {_MOST_COMMENTS >> 10} KiB")


def _webp_size(head: bytes) -> tuple[int, int]:
    """Width and height that the header of a WEBP file claims (RFC 9649, section 2); zeros of another file."""

    def number(start: int, end: int) -> int:
        return int.from_bytes(head[start:end], "little")

    if head[:4] != b"RIFF" or head[8:12] != b"WEBP":
        return 0, 0
    if head[12:16] == b"VP8X":
        return 1 + number(24, 27), 1 + number(27, 30)
    if head[12:16] == b"VP8L":
        return 1 + (number(21, 25) & 0x3FFF), 1 + (number(21, 25) >> 14 & 0x3FFF)
    return number(26, 28) & 0x3FFF, number(28, 30) & 0x3FFF


def check_tile(image: Any) -> None:
    """Refuses a small TIFF with a large tile, all of which would be decoded."""
    width, height = (image.tag_v2.get(tag, 0) for tag in (_TILE_WIDTH, _TILE_LENGTH))
    if width * height > max(SMALL, 2 * image.width * image.height):
        raise ValueError(f"a tile of {width} x {height} pixels for {image.width} x {image.height}")


def check_coded(image: Image.Image, file: IO[bytes]) -> None:
    """Refuses a small AVIF with a large picture in it."""
    for width, height in coded_sizes(file):
        if width * height > max(SMALL, 2 * image.width * image.height):
            raise ValueError(f"a picture of {width} x {height} pixels for {image.width} x {image.height}")
