"""Tar members, read from the headers alone.

Nothing is unpacked, so names are never paths here. Unlike Python's tarfile this reader takes no damaged header for the
end of the archive, and an archive that has no end for one that was cut off: each would leave images out in silence.

Formats: POSIX.1-1988 (ustar), POSIX.1-2001 (pax), GNU and the one before them (v7).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO, NamedTuple

from ssl_toolkit.errors import printable

BLOCK = 512
_ZEROS = bytes(BLOCK)
_MOST_EXTENDED = 1 << 20
"""Bytes of a long name or of pax records; a larger one is no name."""
_MOST_TAIL = 1 << 20
"""So much after the end is looked at; tar fills up with zeros to 10 KiB, or as much as it is told."""

_FILES = frozenset(b"\x0007")
_WITHOUT_DATA = frozenset(b"123456")


class TarError(Exception):
    """What is wrong with an archive, in a few words."""


class Member(NamedTuple):
    """One entry of an archive.

    Attributes:
        name: As it is stored; bytes that are not UTF-8 are surrogates.
        offset: Where its data begin.
        size: Of its data in bytes; they are all there.
        is_file: Whether it is an ordinary file, and no folder, link or device.
    """

    name: str
    offset: int
    size: int
    is_file: bool


def members(file: IO[bytes], total: int) -> Iterator[Member]:
    """The entries of an archive in their order.

    Args:
        file: The archive, which can seek.
        total: Its size in bytes.

    Raises:
        TarError: It is no archive, damaged, or cut off.
    """
    offset, long_name, records = 0, None, {}
    while True:
        file.seek(offset)
        header = file.read(BLOCK)
        if header == _ZEROS:
            return _check_tail(file, offset, total)
        if len(header) < BLOCK:
            raise TarError(f"it is cut off: it ends at byte {total:,} without the empty blocks that end an archive")
        _check_sum(header, offset)
        kind, data = header[156], offset + BLOCK
        name = long_name or records.get("path") or _name(header)
        size = _decimal(records["size"]) if "size" in records else _size(header[124:136])
        if size < 0:
            raise TarError(f"'{printable(name)}' has no valid size")
        if kind in _WITHOUT_DATA:
            size = 0
        if data + size > total:
            raise TarError(
                f"'{printable(name)}' claims {size:,} bytes, but the shard ends after {total - data:,} of them"
            )
        offset = data + -(-size // BLOCK) * BLOCK
        if kind in b"LKxg":
            if size > _MOST_EXTENDED:
                raise TarError(f"the header at byte {data - BLOCK:,} claims a name of {size:,} bytes")
            extended = file.read(size) if kind in b"Lx" else b""
            if kind in b"L":
                long_name = extended.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")
            elif kind in b"x":
                records = _records(extended)
            continue
        if kind in b"S" or any(key.startswith("GNU.sparse.") for key in records):
            raise TarError(f"'{printable(name)}' is stored as a sparse file; make the shard without --sparse")
        is_file = kind in _FILES and not (kind == 0 and name.endswith("/"))
        yield Member(name if is_file else name.rstrip("/"), data, size, is_file)
        long_name, records = None, {}


def _check_sum(header: bytes, offset: int) -> None:
    stored = header[148:156].strip(b"\0 ")
    if not (stored.isdigit() and _octal(stored) == sum(header) - sum(header[148:156]) + 8 * 32):
        raise TarError("it is no tar archive" if offset == 0 else f"it is damaged: no header at byte {offset:,}")


def _octal(digits: bytes) -> int:
    try:
        return int(digits or b"0", 8)
    except ValueError:
        return -1


def _decimal(text: str) -> int:
    """A size in a pax record; -1 if it is none."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else -1


def _size(field: bytes) -> int:
    """A size in a header, octal or in base 256; -1 if it is none."""
    if field[0] & 0x80:
        # 0x80 begins a positive number, 0xff a negative one
        return int.from_bytes(field[1:], "big") if field[0] == 0x80 else -1
    digits = field.split(b"\0", 1)[0].strip()
    return _octal(digits) if not digits or digits.isdigit() else -1


def _name(header: bytes) -> str:
    name = header[:100].split(b"\0", 1)[0]
    if header[257:263] == b"ustar\0" and header[345]:
        name = header[345:500].split(b"\0", 1)[0] + b"/" + name
    return name.decode("utf-8", "surrogateescape")


def _records(content: bytes) -> dict[str, str]:
    """The records ``LENGTH KEY=VALUE`` of a pax header."""
    records, place = {}, 0
    while place < len(content):
        digits, _, rest = content[place : place + 20].partition(b" ")
        length = int(digits) if digits.isdigit() and rest else 0
        record = content[place : place + length]
        key, equals, value = record[len(digits) + 1 : -1].partition(b"=")
        if length < len(digits) + 3 or len(record) < length or not equals or record[-1:] != b"\n":
            raise TarError("a pax header is damaged")
        records[key.decode("utf-8", "replace")] = value.decode("utf-8", "surrogateescape")
        place += length
    return records


def _check_tail(file: IO[bytes], offset: int, total: int) -> None:
    file.seek(offset)
    if total - offset > _MOST_TAIL or file.read().strip(b"\0"):
        raise TarError(
            f"it goes on after its end at byte {offset:,}; join archives with tar --concatenate, not with cat"
        )
