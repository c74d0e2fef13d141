"""The images of one shard and their labels."""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import IO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ssl_toolkit.data.formats import HEAD_BYTES, ending, named_like_image
from ssl_toolkit.data.shards.tar import Member, TarError, members
from ssl_toolkit.errors import printable

MOST_IMAGE_BYTES = 256 << 20
"""An image file that is larger is not read."""
_MOST_LABEL_BYTES = 256
_LINKS = "links (tar --dereference stores what they lead to)"


class _Image(NamedTuple):
    """An image file: its name up to the first dot, up to the last, and whole."""

    key: str
    stem: str
    name: str
    member: Member


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

    A file is an image by the same rules as in a folder. A sample is the files with one name up to the first dot after
    the last slash: ``a/17.jpg``, ``a/17.cls``. Of these the first image of just that name counts (``a/17.jpg`` and not
    ``a/17.mask.png``); if there is none, each image is a sample (``a/scan.2021.0.png``, ``a/scan.2021.1.png``), whose
    label is the text of the ``.cls`` file with the same name up to the last dot, or to the first. Hidden files
    (``._17.jpg``) are left out.

    Args:
        file: The shard, which can seek.
        total: Its size in bytes.

    Raises:
        TarError: It is damaged or cut off, or two of its files have one name.
    """
    images: list[_Image] = []
    labels: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    others: Counter[str] = Counter()
    unlabelled = 0
    for member in members(file, total):
        name = member.name.removeprefix("./")
        folder, _, base = name.rpartition("/")
        if not base or base.startswith("."):
            continue
        suffix = ending(base)
        stem = base[: len(base) - len(suffix)]
        is_image = named_like_image(base, partial(_head, file, member))
        if not member.is_file:
            others[_LINKS] += is_image
            continue
        if not is_image and suffix != ".cls":
            others[suffix or "without ending"] += 1
            continue
        if (f"{folder}/{stem}", suffix) in seen:
            raise TarError(f"it holds '{printable(name)}' twice; a name must be that of one sample")
        seen.add((f"{folder}/{stem}", suffix))
        if is_image:
            images.append(_Image(f"{folder}/{base.partition('.')[0]}", f"{folder}/{stem}", name, member))
        else:
            label = _label(file, member)
            unlabelled += not label
            labels[f"{folder}/{stem}"] = label
    return _arrays(_one_a_sample(images, others), labels)._replace(unlabelled=unlabelled, others=+others)


def _one_a_sample(images: list[_Image], others: Counter[str]) -> list[_Image]:
    """The images that are samples, in their order; the further ones of a sample are counted."""
    plain = {image.key for image in images if image.stem == image.key}
    samples: dict[str, _Image] = {}
    for image in images:
        if image.stem in samples or (image.stem != image.key and image.key in plain):
            others[f"{ending(image.name)} of a sample with another image"] += 1
        else:
            samples[image.stem] = image
    return list(samples.values())


def _head(file: IO[bytes], member: Member) -> bytes:
    if not member.is_file:
        return b""
    file.seek(member.offset)
    return file.read(min(HEAD_BYTES, member.size))


def _label(file: IO[bytes], member: Member) -> str:
    """What a ``.cls`` file says: one printable line, else an empty text."""
    if member.size > _MOST_LABEL_BYTES:
        return ""
    file.seek(member.offset)
    text = file.read(member.size).decode("utf-8", "replace").strip()
    if text.isascii() and text.isdigit():
        return str(int(text))
    return text if text.isprintable() and text != "-1" else ""


def _arrays(images: list[_Image], labels: dict[str, str]) -> ShardContents:
    names = [image.name.encode("utf-8", "surrogateescape") for image in images]
    found = [image.member for image in images]
    classes, class_texts = _numbered([labels.get(image.stem) or labels.get(image.key, "") for image in images])
    folders, folder_texts = _numbered([image.name.partition("/")[0] if "/" in image.name else "" for image in images])
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
