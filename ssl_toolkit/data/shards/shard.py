"""The images of one shard and their labels."""

from __future__ import annotations

from collections import Counter
from typing import IO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ssl_toolkit.data.folders import SUFFIXES
from ssl_toolkit.data.shards.tar import Member, TarError, members
from ssl_toolkit.errors import printable

MOST_IMAGE_BYTES = 256 << 20
"""An image file that is larger is not read."""
_MOST_LABEL_BYTES = 256
_IMAGES = frozenset(suffix[1:] for suffix in SUFFIXES)


class ShardContents(NamedTuple):
    """Index of the images of one shard, in their order.

    Attributes:
        offsets: int64 array ``[num]``: where each image file begins.
        sizes: uint32 array ``[num]``: its bytes.
        classes: int32 array ``[num]``: the place in ``class_texts`` of what its ``.cls`` file says, -1 for nothing.
        folders: int32 array ``[num]``: the place in ``folder_texts`` of the first folder of its name, -1 for none.
        name_ends: uint32 array ``[num]``: where its name ends in ``names``; it begins where the one before ends.
        names: uint8 array: all names, one after the other, in UTF-8.
        class_texts: What ``.cls`` files say.
        folder_texts: Names of folders.
        unlabelled: How many ``.cls`` files say nothing that could be a class.
        others: How many files of other kinds there are, by what their names end in.
    """

    offsets: NDArray[np.int64]
    sizes: NDArray[np.uint32]
    classes: NDArray[np.int32]
    folders: NDArray[np.int32]
    name_ends: NDArray[np.uint32]
    names: NDArray[np.uint8]
    class_texts: list[str]
    folder_texts: list[str]
    unlabelled: int = 0
    others: Counter[str] = Counter()  # noqa: RUF012 (never changed)


def read_shard(file: IO[bytes], total: int) -> ShardContents:
    """Reads the headers and the labels of a shard.

    A sample is the files with one name up to the first dot after the last slash: ``a/17.jpg``, ``a/17.cls``. Of these
    the first that is an image counts, and the text in ``.cls``. Hidden files (``._17.jpg``) are left out.

    Args:
        file: The shard, which can seek.
        total: Its size in bytes.

    Raises:
        TarError: It is damaged or cut off, or two of its files have one name.
    """
    images: dict[str, tuple[str, Member]] = {}
    labels: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    others: Counter[str] = Counter()
    unlabelled = 0
    for member in members(file, total):
        name = member.name.removeprefix("./")
        folder, _, base = name.rpartition("/")
        if not base or base.startswith("."):
            continue
        stem, _, suffix = base.partition(".")
        suffix = suffix.lower()
        if not member.is_file:
            others["links and folders"] += 1
            continue
        key = f"{folder}/{stem}"
        if suffix not in _IMAGES and suffix != "cls":
            others[f".{suffix}" if suffix else "no suffix"] += 1
            continue
        if (key, suffix) in seen:
            raise TarError(f"it holds '{printable(name)}' twice; a name must be that of one sample")
        seen.add((key, suffix))
        if suffix == "cls":
            label = _label(file, member)
            unlabelled += not label
            labels[key] = label
        elif key in images:
            others[f".{suffix} of a sample with another image"] += 1
        else:
            images[key] = (name, member)
    return _arrays(images, labels)._replace(unlabelled=unlabelled, others=others)


def _label(file: IO[bytes], member: Member) -> str:
    """What a ``.cls`` file says: one printable line, else an empty text."""
    if member.size > _MOST_LABEL_BYTES:
        return ""
    file.seek(member.offset)
    text = file.read(member.size).decode("utf-8", "replace").strip()
    if text.isascii() and text.isdigit():
        return str(int(text))
    return text if text.isprintable() and text != "-1" else ""


def _arrays(images: dict[str, tuple[str, Member]], labels: dict[str, str]) -> ShardContents:
    names = [name.encode("utf-8", "surrogateescape") for name, _ in images.values()]
    found = [member for _, member in images.values()]
    classes, class_texts = _numbered([labels.get(key, "") for key in images])
    folders, folder_texts = _numbered([name.partition("/")[0] if "/" in name else "" for name, _ in images.values()])
    return ShardContents(
        np.array([member.offset for member in found], dtype=np.int64),
        np.array([min(member.size, 2**32 - 1) for member in found], dtype=np.uint32),
        classes,
        folders,
        np.cumsum([len(name) for name in names], dtype=np.int64).astype(np.uint32),
        np.frombuffer(b"".join(names), dtype=np.uint8),
        class_texts,
        folder_texts,
    )


def _numbered(texts: list[str]) -> tuple[NDArray[np.int32], list[str]]:
    """Texts as places in a table of those that occur; -1 for an empty one."""
    table: dict[str, int] = {}
    places = [table.setdefault(text, len(table)) if text else -1 for text in texts]
    return np.array(places, dtype=np.int32), list(table)
