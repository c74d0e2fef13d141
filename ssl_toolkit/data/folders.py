"""Image folders: finds the images of a folder, and their classes."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Sequence, Set
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ssl_toolkit.data.formats import HEAD_BYTES, SUFFIXES, ending, named_like_image
from ssl_toolkit.errors import counted, nearest
from ssl_toolkit.io.atomic import open_plain


class ImageFile(NamedTuple):
    """One image file.

    Attributes:
        name: Path relative to the folder, with ``/`` between its parts.
        size: In bytes.
        modified: Time of the last change in nanoseconds.
    """

    name: str
    size: int
    modified: int


class Listing(NamedTuple):
    """What a folder holds.

    Attributes:
        images: Its image files, sorted by name.
        left_out: How many other files there are, by what their names end in.
    """

    images: list[ImageFile]
    left_out: Counter[str]


def find_images(path: Path, further: Set[str] = frozenset()) -> Listing:
    """All image files under a folder. Of a file whose ending does not tell what it is, the first bytes decide.

    Args:
        path: The folder.
        further: Endings of names, in lower case, that count beside those of images.

    Raises:
        ValueError: The path is not a folder or holds no image.
    """
    check_folder(path)
    found: list[ImageFile] = []
    others: Counter[str] = Counter()
    # Linked folders wait until all real ones are known, so that a folder is listed under its own name; each folder
    # counts once, which ends loops of links and keeps an image from being in two splits.
    visited: set[tuple[int, int]] = set()
    waiting, linked = [""], []
    while waiting or linked:
        folder = waiting.pop() if waiting else linked.pop(0)
        status = (path / folder).stat()
        if (status.st_dev, status.st_ino) in visited:
            continue
        visited.add((status.st_dev, status.st_ino))
        try:
            entries = sorted(os.scandir(path / folder), key=lambda entry: entry.name)
        except OSError as error:
            raise ValueError(f"cannot list the folder '{path / folder}': {error.strerror}") from error
        for entry in entries:
            name = f"{folder}/{entry.name}" if folder else entry.name
            if entry.name.startswith("."):
                continue
            status = _status(entry)
            if status is not None and stat.S_ISDIR(status.st_mode):
                (linked if entry.is_symlink() else waiting).append(name)
            elif ending(name) not in further and not _is_image(path / name):
                others[ending(name) or "without ending"] += 1
            elif status is not None and stat.S_ISREG(status.st_mode):
                found.append(ImageFile(name, status.st_size, status.st_mtime_ns))
            else:
                # a broken link, a pipe or a device is a bad image: to be named, not to be lost, and never to be opened
                found.append(ImageFile(name, -1, -1))
    if not found:
        kinds = ", ".join(f"{suffix} {count}" for suffix, count in others.most_common(5))
        number = others.total()
        advice = "; tar shards are read with --data.source shards" if ".tar" in others else ""
        held = f"holds {number} file{'s' * (number != 1)}, none is an image ({kinds})" if number else "is empty"
        raise ValueError(f"the folder '{path}' {held}; images end in {' '.join(sorted(SUFFIXES | further))}{advice}")
    return Listing(sorted(found), others)


def _is_image(path: Path) -> bool:
    def head() -> bytes:
        try:
            with open_plain(path) as file:
                return file.read(HEAD_BYTES)
        except OSError:
            return b""

    return named_like_image(path.name, head)


def _status(entry: os.DirEntry[str]) -> os.stat_result | None:
    """What an entry or the target of a link is; None if that cannot be said, as of a link that leads to itself."""
    try:
        return entry.stat()
    except OSError:
        return None


def check_folder(path: Path) -> None:
    """Raises a ValueError that helps if the path is not a folder."""
    if path.is_dir():
        return
    if path.exists():
        raise ValueError(f"'{path}' is a file, but a folder of images is needed; give the folder it lies in")
    siblings = [child for child in path.parent.iterdir() if child.is_dir()] if path.parent.is_dir() else []
    shown = {child.name: str(child) for child in siblings}
    raise ValueError(f"the folder '{path}' does not exist{nearest(path.name, shown, shown)}")


def label_by_folder(
    path: str | Path, names: Sequence[str], class_names: Sequence[str] | None = None
) -> tuple[list[str], NDArray[np.int64]]:
    """Classes from the first-level sub-folders.

    Args:
        path: The folder, for messages.
        names: Relative paths of the images.
        class_names: The classes in order, if another folder defines them.

    Returns:
        The class names, and an int64 array with the class number of each image.

    Raises:
        ValueError: An image lies outside every sub-folder, or in one that is not a class.
    """
    loose = [name for name in names if "/" not in name]
    if loose:
        found = counted(len(loose), "images")
        which = found if len(loose) == len(names) else f"{found} of {len(names):,}"
        lie = "lies" if len(loose) == 1 else "lie"
        raise ValueError(
            f"data.labels: folder takes the class of an image from its first-level sub-folder, but "
            f"{which} {lie} directly in '{path}' (such as {loose[0]}); put each "
            "class into a folder of its own, or give a table of labels (--data.table); a task that needs no labels "
            "also takes --data.labels none"
        )
    folders = [name.split("/", 1)[0] for name in names]
    found = sorted(set(folders))
    classes = found if class_names is None else list(class_names)
    number = class_numbers(classes, found, f"the sub-folder '{{}}' of '{path}'")
    return classes, np.array([number[folder] for folder in folders], dtype=np.int64)


def class_numbers(classes: Sequence[str], found: Sequence[str], called: str) -> dict[str, int]:
    """The number of each class by its name.

    Args:
        classes: In the order of their numbers.
        found: The names that images have.
        called: What to call one of these in a message, with ``{}`` in its place.

    Raises:
        ValueError: Images have a name that is no class.
    """
    numbers = {name: number for number, name in enumerate(classes)}
    unknown = next((name for name in found if name not in numbers), None)
    if unknown is not None:
        raise ValueError(
            f"{called.replace('{}', unknown)} is none of the {counted(len(classes), 'classes')} of the training images"
            f"{nearest(unknown, classes)}"
        )
    return numbers
