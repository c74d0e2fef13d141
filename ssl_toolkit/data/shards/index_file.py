"""Index file of shards, which is read on demand.

It is not mapped into memory, because a map ends the process if somebody cuts the file.

The file is: the columns of `ShardContents`, each for all shards in their order and filled up to whole numbers of eight
bytes; a JSON text with the shards and the tables of texts; the BLAKE2 sum of all that; the length of the JSON text as
int64; eight bytes that name the format.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ssl_toolkit.data.shards.open_file import OpenFile
from ssl_toolkit.data.shards.remote import Found
from ssl_toolkit.data.shards.shard import ShardContents
from ssl_toolkit.io.atomic import atomic_file
from ssl_toolkit.io.schema import COUNT, TEXT, Kind, problems

MAGIC = b"SSLTKSH2"
COLUMNS = {"offsets": "<i8", "sizes": "<u4", "classes": "<i4", "folders": "<i4", "name_ends": "<u4", "names": "u1"}
_DIGEST_BYTES = 32
_ENTRY = Kind(
    "a shard",
    lambda value: (
        isinstance(value, list)
        and len(value) == 7
        and TEXT.fits(value[0])
        and all(map(COUNT.fits, (value[1], *value[3:6])))
        and isinstance(value[2], str | int | float | None)
        and isinstance(value[6], dict)
        and all(map(COUNT.fits, value[6].values()))
    ),
)
_ABOUT = {"shards": [_ENTRY], "classes": [TEXT], "folders": [TEXT]}
_BLOCK = 1 << 22
_MOST_TEXTS = 1_000_000


class Column:
    """Numbers in a file, read when they are asked for: ``column[7]``, ``column[10:20]``, ``column[:]``.

    Args:
        file: The file.
        kind: NumPy's name of their type.
        offset: Where they begin, in bytes.
        length: How many there are.
    """

    def __init__(self, file: OpenFile, kind: str, offset: int, length: int) -> None:
        self._file = file
        self._kind = np.dtype(kind)
        self._offset = offset
        self._length = length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, place: int | slice) -> Any:
        first, end, _ = place.indices(self._length) if isinstance(place, slice) else (place, place + 1, 1)
        width = self._kind.itemsize
        wanted = max(0, end - first) * width
        blocks, begin = [], self._offset + first * width
        while wanted and (block := self._file.read(min(wanted, _BLOCK), begin)):  # no call reads more than 2 GiB
            blocks.append(block)
            begin, wanted = begin + len(block), wanted - len(block)
        if wanted:
            raise ValueError("the index of the shards was cut off by another program; start again")
        numbers = np.frombuffer(b"".join(blocks), dtype=self._kind)
        return numbers if isinstance(place, slice) else numbers[0]


class Entry(NamedTuple):
    """One shard in the index.

    Attributes:
        name: Its address, without what follows a question mark.
        found: Its state when it was read.
        num_images: How many images it holds.
        num_name_bytes: Bytes of their names.
        unlabelled: As in `ShardContents`.
        others: As in `ShardContents`.
    """

    name: str
    found: Found
    num_images: int
    num_name_bytes: int
    unlabelled: int
    others: dict[str, int]


class Index(NamedTuple):
    """The images of all shards.

    Attributes:
        entries: The shards.
        starts: int64 array ``[num_shards + 1]``: shard ``i`` has the images ``starts[i]`` to ``starts[i + 1] - 1``.
        name_starts: int64 array ``[num_shards + 1]``: likewise, where its names are.
        columns: Those of `ShardContents` by name, for all images.
        class_texts: What ``.cls`` files say; ``columns["classes"]`` are places in it.
        folder_texts: Names of folders; ``columns["folders"]`` are places in it.
    """

    entries: list[Entry]
    starts: NDArray[np.int64]
    name_starts: NDArray[np.int64]
    columns: dict[str, Column]
    class_texts: list[str]
    folder_texts: list[str]

    def left_out(self) -> Counter[str]:
        """How many files are no images, by what their names end in."""
        return sum((Counter(entry.others) for entry in self.entries), Counter())

    def name(self, image: int) -> str:
        """The name of an image in its shard."""
        shard = self.shard(image)
        first = int(self.starts[shard])
        ends, names = self.columns["name_ends"], self.columns["names"]
        base = int(self.name_starts[shard])
        begin = 0 if image == first else int(ends[image - 1])
        return names[base + begin : base + int(ends[image])].tobytes().decode("utf-8", "replace")

    def names(self, shard: int) -> list[str]:
        """The names of the images of one shard."""
        images = slice(int(self.starts[shard]), int(self.starts[shard + 1]))
        ends = self.columns["name_ends"][images].tolist()
        names = self.columns["names"][int(self.name_starts[shard]) : int(self.name_starts[shard + 1])].tobytes()
        return [names[begin:end].decode("utf-8", "replace") for begin, end in itertools.pairwise([0, *ends])]

    def shard(self, image: int) -> int:
        """The shard that holds an image."""
        return int(np.searchsorted(self.starts, image, side="right")) - 1

    def contents(self, shard: int) -> ShardContents:
        """The images of one shard."""
        images = slice(int(self.starts[shard]), int(self.starts[shard + 1]))
        entry = self.entries[shard]
        contents = {name: column[images] for name, column in self.columns.items() if name != "names"}
        names = self.columns["names"][int(self.name_starts[shard]) : int(self.name_starts[shard + 1])]
        others = Counter(entry.others)
        return ShardContents(**contents, names=names, class_texts=self.class_texts, folder_texts=self.folder_texts,
                    unlabelled=entry.unlabelled, others=others)  # fmt: skip


def _ends(numbers: Sequence[int]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(numbers, dtype=np.int64)]).astype(np.int64)


def write_index(path: Path, shards: Sequence[tuple[str, Found]], contents: Sequence[ShardContents]) -> None:
    """Writes an index, whole or not at all.

    Args:
        path: Where.
        shards: For each shard, its address without what follows a question mark, and its state.
        contents: What each shard holds.

    Raises:
        ValueError: There are too many different classes.
        OSError: The file cannot be written.
    """
    tables: dict[str, dict[str, int]] = {"classes": {}, "folders": {}}
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    with atomic_file(path) as file:
        for column, kind in COLUMNS.items():
            length = 0
            for each in contents:
                values = getattr(each, column)
                if column in tables:
                    texts = each.class_texts if column == "classes" else each.folder_texts
                    values = _renumbered(values, texts, tables[column])
                length += _write(file, np.ascontiguousarray(values, dtype=kind).tobytes(), digest)
            _write(file, bytes(-length % 8), digest)
        entries = [
            [name, found.size, found.stamp, len(each.offsets), len(each.names), each.unlabelled, each.others]
            for (name, found), each in zip(shards, contents, strict=True)
        ]
        about = {"shards": entries, **{name: list(table) for name, table in tables.items()}}
        text = json.dumps(about).encode()
        _write(file, text, digest)
        file.write(digest.digest() + len(text).to_bytes(8, "little") + MAGIC)


def _renumbered(places: NDArray[np.int32], texts: list[str], table: dict[str, int]) -> NDArray[np.int32]:
    """Places in the table of one shard as places in that of all."""
    used = np.unique(places)
    new = np.full(len(texts) + 1, -1, dtype=np.int32)
    for place in used[used >= 0].tolist():
        new[place] = table.setdefault(texts[place], len(table))
    if len(table) > _MOST_TEXTS:
        raise ValueError(f"the shards name more than {_MOST_TEXTS:,} different classes; a .cls file holds one class")
    return new[places]


def _write(file: IO[bytes], content: bytes, digest: Any) -> int:
    file.write(content)
    digest.update(content)
    return len(content)


def read_index(path: Path) -> Index | None:
    """The index in a file; None if there is no file, or it is not what was written."""
    try:
        file = OpenFile(path)
        about, num_bytes = _checked(file)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    if next(problems(about, _ABOUT), None):
        return None
    entries = [
        Entry(name, Found(size, stamp), num_images, num_name_bytes, unlabelled, others)
        for name, size, stamp, num_images, num_name_bytes, unlabelled, others in about["shards"]
    ]
    starts = _ends([entry.num_images for entry in entries])
    name_starts = _ends([entry.num_name_bytes for entry in entries])
    columns, offset = {}, 0
    for column, kind in COLUMNS.items():
        length = int(name_starts[-1] if column == "names" else starts[-1])
        columns[column] = Column(file, kind, offset, length)
        length *= np.dtype(kind).itemsize
        offset += length + -length % 8
    if offset != num_bytes:
        return None
    index = Index(entries, starts, name_starts, columns, about["classes"], about["folders"])
    return index if _is_consistent(index) else None


def _is_consistent(index: Index) -> bool:
    """Whether the columns are of these shards and tables; the sum says only that they are what was written."""
    for column, texts in (("classes", index.class_texts), ("folders", index.folder_texts)):
        places = index.columns[column][:]
        if len(places) and not -1 <= places.min() <= places.max() < len(texts):
            return False
    for shard, entry in enumerate(index.entries):
        images = slice(int(index.starts[shard]), int(index.starts[shard + 1]))
        offsets, sizes = index.columns["offsets"][images], index.columns["sizes"][images]
        ends = index.columns["name_ends"][images]
        if (ends[1:] < ends[:-1]).any() or (ends[-1] if len(ends) else 0) != entry.num_name_bytes:
            return False
        if len(offsets) and not 0 <= offsets.min() <= offsets.max() <= entry.found.size:
            return False
        if (offsets + sizes > entry.found.size).any():
            return False
    return True


def _checked(file: OpenFile) -> tuple[dict[str, Any], int]:
    """The JSON text and the bytes of the columns of a file that is whole."""
    end = file.state().st_size - _DIGEST_BYTES - 8 - len(MAGIC)
    if end < 0:
        raise ValueError("too short")
    tail = file.read(_DIGEST_BYTES + 8 + len(MAGIC), end)
    stored, length = tail[:_DIGEST_BYTES], int.from_bytes(tail[_DIGEST_BYTES:-8], "little")
    if not tail.endswith(MAGIC) or length > end:
        raise ValueError("not an index")
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    for start in range(0, end, _BLOCK):
        digest.update(file.read(min(_BLOCK, end - start), start))
    if digest.digest() != stored:
        raise ValueError("changed")
    return json.loads(file.read(length, end - length)), end - length
