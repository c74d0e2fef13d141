"""Identical images, which must not be on both sides of a split."""

from __future__ import annotations

import contextlib
import hashlib
from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ssl_toolkit.data.dataset import ImageSet
from ssl_toolkit.data.sources import FolderSource, Source, SubsetSource
from ssl_toolkit.io.atomic import write_atomically

MOST_FILES = 200_000
MOST_PIXEL_BYTES = 1 << 30
_ENDS = 4096
_FEWEST_KEPT = 1000


def copied_files(sets: Sequence[ImageSet]) -> list[NDArray[np.int64]] | None:
    """The first of the files that are identical to each, byte by byte, over several sets.

    Args:
        sets: The sets; all numbers count from the first image of the first set.

    Returns:
        An int64 array for each set, with each image's own number where none before it is identical. None where images
        have no files of their own, and where looking would take long: among more than 200,000.
    """
    files = [file for images in sets for file in files_of(images.source)]
    if len(files) != sum(len(images.source) for images in sets) or len(files) > MOST_FILES:
        return None
    firsts = np.arange(len(files))
    places, values = _kept(sets, files)
    firsts[places] = values
    return np.split(firsts, np.cumsum([len(images.source) for images in sets])[:-1])


def _kept(sets: Sequence[ImageSet], files: Sequence[tuple[Path, int]]) -> NDArray[np.int64]:
    """Places of copies and of the first of each, ``[2, num]``; of many files they are kept beside decoded images."""
    key = "\n".join(images.source.fingerprint() for images in sets)
    file = sets[0].cache_dir / f"{hashlib.blake2b(key.encode(), digest_size=16).hexdigest()}.copies"
    with contextlib.suppress(OSError, ValueError):
        kept = np.frombuffer(file.read_bytes(), dtype="<i8").reshape(2, -1)
        if kept.size == 0 or (kept.min() >= 0 and kept.max() < len(files)):
            return kept.astype(np.int64)
    firsts = first_files(files)
    places = np.flatnonzero(firsts != np.arange(len(files)))
    found = np.stack([places, firsts[places]])
    if len(files) >= _FEWEST_KEPT:
        with contextlib.suppress(OSError):  # a folder that cannot be written is no reason not to start
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(file, found.astype("<i8").tobytes())
    return found


def copied_pixels(images: ImageSet) -> NDArray[np.int64] | None:
    """As `copied_files` of one set, by the pixels; None if they are not decoded, or take more than 1 GiB."""
    digests = images.store.digests(MOST_PIXEL_BYTES)
    return None if digests is None else _firsts(digests.tolist())


def files_of(source: Source) -> list[tuple[Path, int]]:
    """Path and number of bytes of each image of a folder; nothing of another source."""
    if isinstance(source, SubsetSource):
        files = files_of(source.source)
        return [files[place] for place in source.places.tolist()] if files else []
    return source.files() if isinstance(source, FolderSource) else []


def first_files(files: Sequence[tuple[Path, int]]) -> NDArray[np.int64]:
    """The place of the first of the files that are identical to each, byte by byte.

    Args:
        files: Path and number of bytes of each.
    """
    firsts = np.arange(len(files))
    # of most files the size alone says that they have no copy, and of nearly all others their ends
    for places in _shared((size for _, size in files), range(len(files))):
        for candidates in _shared((digest_of(files[place][0], _ENDS) for place in places), places):
            for same in _shared((digest_of(files[place][0]) for place in candidates), candidates):
                firsts[same] = same[0]
    return firsts


def _shared(keys: Iterable[Hashable], places: Sequence[int]) -> list[list[int]]:
    """The places that share a key with another one, key by key; a key of None is shared with nobody."""
    found = defaultdict(list)
    for key, place in zip(keys, places, strict=True):
        if key is not None:
            found[key].append(place)
    return [each for each in found.values() if len(each) > 1]


def digest_of(file: Path, ends: int | None = None) -> bytes | None:
    """Of a file, or of its two ends; None if it cannot be read, which is said elsewhere."""
    try:
        with file.open("rb") as opened:
            if ends is None:
                digest = hashlib.blake2b()
                while block := opened.read(1 << 20):
                    digest.update(block)
                return digest.digest()
            first = opened.read(ends)
            opened.seek(max(0, file.stat().st_size - ends))
            return hashlib.blake2b(first + opened.read(ends), digest_size=16).digest()
    except OSError:
        return None


def _firsts(keys: Sequence[int]) -> NDArray[np.int64]:
    seen: dict[int, int] = {}
    return np.array([seen.setdefault(key, place) if key else place for place, key in enumerate(keys)], dtype=np.int64)
