"""TIFF files of any kind of numbers, byte by byte (TIFF 6.0), for what Pillow does not write."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np

CODES = {"B": 1, "s": 2, "H": 3, "I": 4, "f": 11, "d": 12}


def tiff(
    bands: np.ndarray,
    *,
    bits: int | None = None,
    white_is_zero: bool = False,
    planar: bool = False,
    deflate: bool = False,
    order: str = "<",
    big: bool = False,
    extra: int = 0,
    tags: dict[int, tuple[str, list]] | None = None,
) -> io.BytesIO:
    """A TIFF of one strip, or of one for each channel.

    Args:
        bands: Array of shape ``[channels, height, width]``.
        bits: Of each number; those of the array by default.
        white_is_zero: Whether the least number is white.
        planar: Whether each channel has a strip of its own.
        deflate: Whether the strips are compressed.
        order: Of bytes: ``<`` or ``>``.
        big: BigTIFF.
        extra: How many channels are extra samples of no named meaning.
        tags: Further ones: letter of `struct`, values.
    """
    channels, height, width = bands.shape
    stored = bands.astype(order + bands.dtype.str[1:])
    strips = [plane.tobytes() for plane in stored] if planar else [np.moveaxis(stored, 0, -1).tobytes()]
    strips = [zlib.compress(strip) for strip in strips] if deflate else strips
    photometric = 2 if channels - extra == 3 else 0 if white_is_zero else 1
    kind = {"u": 1, "i": 2, "f": 3}[bands.dtype.kind]
    start = 16 if big else 8
    offsets = [start + sum(map(len, strips[:number])) for number in range(len(strips))]
    entries: dict[int, tuple[str, list]] = {
        256: ("I", [width]), 257: ("I", [height]), 258: ("H", [bits or 8 * bands.dtype.itemsize] * channels),
        259: ("H", [8 if deflate else 1]), 262: ("H", [photometric]), 273: ("I", offsets), 277: ("H", [channels]),
        278: ("I", [height]), 279: ("I", [len(strip) for strip in strips]), 284: ("H", [2 if planar else 1]),
        339: ("H", [kind] * channels), **({338: ("H", [0] * extra)} if extra else {}), **(tags or {}),
    }  # fmt: skip
    body = b"".join(strips)
    directory, room, entry, count = ("Q", 8, "HHQ", "Q") if big else ("I", 4, "HHI", "H")
    after = start + len(body) + struct.calcsize(f"{order}{count}") + len(entries) * (12 if room == 4 else 20) + room
    table, tail = b"", b""
    for tag, (letter, values) in sorted(entries.items()):
        number = len(values[0]) if letter == "s" else len(values)
        raw = values[0] if letter == "s" else struct.pack(f"{order}{number}{letter}", *values)
        table += struct.pack(order + entry, tag, CODES[letter], number)
        table += raw.ljust(room, b"\0") if len(raw) <= room else struct.pack(order + directory, after + len(tail))
        tail += raw + b"\0" * (len(raw) % 2) if len(raw) > room else b""
    mark = b"II" if order == "<" else b"MM"
    head = (
        struct.pack(order + "HHHQ", 43, 8, 0, start + len(body))
        if big
        else struct.pack(order + "HI", 42, 8 + len(body))
    )
    number = struct.pack(order + count, len(entries))
    return io.BytesIO(mark + head + body + number + table + bytes(room) + tail)
