"""Sizes of the pictures coded in an AVIF file, which may be larger than the image that the file claims to be.

The decoder makes room for what the AV1 stream says (AV1 Bitstream & Decoding Process Specification, section 5.5), not
for what the boxes around it say (ISO/IEC 14496-12 and 23008-12).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from typing import IO

_CONTAINERS = frozenset({b"moov", b"trak", b"mdia", b"minf", b"stbl"})
_SEQUENCE_HEADER = 1
_MOST_BOX = 16 << 20
"""Bytes of a box of offsets; a larger one is damage."""
_MOST_HEADER = 64
_MOST_UNITS = 10_000


class _Bits:
    """Bits of a text of bytes, the highest first; zeros behind its end."""

    def __init__(self, content: bytes) -> None:
        self._number = int.from_bytes(content, "big")
        self._left = 8 * len(content)

    def read(self, count: int) -> int:
        self._left -= count
        shifted = self._number >> self._left if self._left >= 0 else 0
        return shifted & ((1 << count) - 1)


def coded_sizes(file: IO[bytes]) -> Iterator[tuple[int, int]]:
    """Width and height of each sequence of pictures in a file, as far as its boxes can be followed."""
    end = file.seek(0, os.SEEK_END)
    for start, stop in _streams(file, 0, end):
        yield from _sequences(file, start, min(stop, end))


def _boxes(file: IO[bytes], start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Kind, begin and end of the content of each box."""
    while start + 8 <= end:
        file.seek(start)
        size, kind = struct.unpack(">I4s", file.read(8))
        head = 8
        if size == 1:
            size, head = int.from_bytes(file.read(8), "big"), 16
        stop = end if size == 0 else start + size
        if stop > end or stop < start + head:
            return
        yield kind, start + head, stop
        start = stop


def _streams(file: IO[bytes], start: int, end: int) -> Iterator[tuple[int, int]]:
    """Where AV1 streams may begin and end."""
    for kind, begin, stop in _boxes(file, start, end):
        if kind in _CONTAINERS:
            yield from _streams(file, begin, stop)
        elif kind == b"meta":
            boxes = list(_boxes(file, begin + 4, stop))
            data = next((place for name, place, _ in boxes if name == b"idat"), 0)
            for name, place, after in boxes:
                if name == b"iloc":
                    yield from _items(_content(file, place, after), data)
        elif kind in (b"stco", b"co64"):
            width = 4 if kind == b"stco" else 8
            table = _content(file, begin + 8, stop)
            for place in range(0, len(table) - width + 1, width):
                yield int.from_bytes(table[place : place + width], "big"), 1 << 62


def _content(file: IO[bytes], begin: int, stop: int) -> bytes:
    file.seek(begin)
    return file.read(min(max(0, stop - begin), _MOST_BOX))


def _items(box: bytes, data: int) -> Iterator[tuple[int, int]]:
    """The extents of the items in a box ``iloc``."""
    version, place = (box[0] if box else 0), 4

    def number(width: int) -> int:
        nonlocal place
        place += width
        return int.from_bytes(box[place - width : place], "big")

    sizes = number(2)
    offset_size, length_size, base_size, index_size = (sizes >> shift & 15 for shift in (12, 8, 4, 0))
    for _ in range(number(2 if version < 2 else 4)):
        if place >= len(box):
            return
        number(2 if version < 2 else 4)
        in_data = version > 0 and number(2) & 15 == 1
        number(2)
        base = number(base_size)
        for _ in range(number(2)):
            if place >= len(box):
                return
            if version > 0:
                number(index_size)
            start = base + number(offset_size) + (data if in_data else 0)
            length = number(length_size)
            yield start, start + length if length else 1 << 62


def _sequences(file: IO[bytes], start: int, end: int) -> Iterator[tuple[int, int]]:
    """The sizes in the sequence headers of a stream."""
    for _ in range(_MOST_UNITS):
        if start >= end:
            return
        file.seek(start)
        head = file.read(10)
        if not head or head[0] & 0x81 or not head[0] & 2:  # no unit, or one without its size: nothing can follow
            return
        place = 2 if head[0] & 4 else 1
        size = shift = 0
        for byte in head[place:]:
            size |= (byte & 127) << shift
            shift += 7
            place += 1
            if byte < 128:
                break
        if head[0] >> 3 == _SEQUENCE_HEADER:
            file.seek(start + place)
            yield _size(_Bits(file.read(min(size, _MOST_HEADER))))
        start += place + size


def _size(bits: _Bits) -> tuple[int, int]:
    """Width and height in a sequence header (section 5.5.1)."""
    bits.read(4)
    if bits.read(1):  # of a still picture, reduced
        bits.read(5)
    else:
        delay = _timing(bits)
        has_display_delay = bits.read(1)
        for _ in range(bits.read(5) + 1):
            bits.read(12)
            if bits.read(5) > 7:
                bits.read(1)
            if delay and bits.read(1):
                bits.read(2 * delay + 1)
            if has_display_delay and bits.read(1):
                bits.read(4)
    width, height = bits.read(4) + 1, bits.read(4) + 1
    return bits.read(width) + 1, bits.read(height) + 1


def _timing(bits: _Bits) -> int:
    """Passes over the timing of a sequence; returns the bits of a delay, 0 if there are none."""
    if not bits.read(1):
        return 0
    bits.read(64)
    if bits.read(1):
        zeros = 0
        while zeros < 32 and not bits.read(1):
            zeros += 1
        bits.read(zeros if zeros < 32 else 0)
    if not bits.read(1):
        return 0
    delay = bits.read(5) + 1
    bits.read(42)
    return delay
