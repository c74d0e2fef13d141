"""Split file of a run: the split of each image, by its name, so that another start can be held to it."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ssl_toolkit.data.dataset import ImageSet
from ssl_toolkit.data.sources import Source
from ssl_toolkit.errors import counted
from ssl_toolkit.io.atomic import write_atomically

FILE = "splits.parquet"
# of more images a digest is kept in place of their names
MOST_NAMED = 1_000_000
# whose names are in the digest, beside the sizes of all
_NAMES_IN_DIGEST = 10_000
MOST_PIXEL_BYTES = 1 << 30
_SHOWN = 3
_WAYS = (
    "bring back what the run was begun with, or begin a new run with another --out (with --data.splits RUN every image "
    "that is still there keeps its split)"
)
_NO_LABELS = np.zeros(0, dtype=np.int64)
_NUMBERS = {"size": np.int64, "pixels": np.uint64}


class Assignment(NamedTuple):
    """The images of one source with their splits.

    Attributes:
        names: Of each image, in the order of the source; empty if there are too many.
        sizes: int64 array: bytes of each image's file, -1 where it has none of its own.
        pixels: uint64 array: a hash of each image's pixels, 0 where it is not known.
        splits: Array of texts: ``train``, ``val`` or ``test``; empty text for an image that is left out.
        class_names: Of the source.
        settings: What the pixels depend on.
        num: How many images there are.
        digest: Of sizes and names, where the names are too many to keep; empty otherwise.
        labels: int64 array: the class number of each image, -1 for none. None where it is not known: the images are too
            many, or the file is of an earlier version.
        targets: Of the numbers to predict, of weights and of covariates a digest; empty without any.
    """

    names: list[str]
    sizes: NDArray[np.int64]
    pixels: NDArray[np.uint64]
    splits: NDArray[np.str_]
    class_names: list[str]
    settings: str
    num: int
    digest: str = ""
    labels: NDArray[np.int64] | None = None
    targets: str = ""


def assignment_of(images: ImageSet, parts: Mapping[str, NDArray[np.int64]]) -> Assignment:
    """The assignment of a source.

    Args:
        images: The images.
        parts: The places of each split.
    """
    source, num = images.source, len(images.source)
    settings = images.settings
    if num > MOST_NAMED:
        none = np.zeros(0, dtype=np.int64)
        names, digest = list(source.class_names), _digest(source)
        return Assignment(
            [], none, none.astype(np.uint64), none.astype(str), names, settings, num, digest,
            targets=_digest_of_targets(source),
        )  # fmt: skip
    splits = np.full(num, "", dtype="<U5")
    for name, places in parts.items():
        splits[places] = name
    # a test set is decoded when the test begins, and not for this
    pixels = images.store.digests(MOST_PIXEL_BYTES) if images.is_decoded else None
    return Assignment(
        [source.name(place) for place in range(num)], source.sizes(),
        np.zeros(num, dtype=np.uint64) if pixels is None else pixels, splits, list(source.class_names), settings, num,
        labels=source.labels(), targets=_digest_of_targets(source),
    )  # fmt: skip


def write_split_file(file: Path, assignments: Mapping[str, Assignment]) -> None:
    """Writes the assignments of a run: one of the images that are divided ("train"), one of each set that is a split.

    Columns: ``source``, ``name``, ``size`` (bytes), ``pixels`` (a hash), ``split``, ``label`` (a class number).
    """
    about = {
        name: {key: getattr(each, key) for key in ("class_names", "settings", "num", "digest", "targets")}
        for name, each in assignments.items()
    }
    each = assignments.values()
    table = pa.table(
        {
            "source": [name for name, of_one in assignments.items() for _ in of_one.names],
            "name": [name for of_one in each for name in of_one.names],
            "size": np.concatenate([of_one.sizes for of_one in each]),
            "pixels": np.concatenate([of_one.pixels for of_one in each]),
            "split": pa.array(np.concatenate([of_one.splits for of_one in each]).tolist(), pa.string()),
            "label": np.concatenate([_NO_LABELS if of_one.labels is None else of_one.labels for of_one in each]),
        }
    )
    sink = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata({"ssl_toolkit": json.dumps(about)}), sink, compression="zstd")
    write_atomically(file, sink.getvalue().to_pybytes())


def read_split_file(path: str | Path) -> dict[str, Assignment]:
    """Reads what `write_split_file` wrote.

    Args:
        path: The file, or the folder of the run that holds it.

    Raises:
        ValueError: In one line, if it is not there, or is no split file.
    """
    file = Path(path).expanduser()
    file = file / FILE if file.is_dir() else file
    if not file.is_file():
        raise ValueError(f"there is no split file '{file}'; give a run's folder, or its {FILE}")
    try:
        table = pq.read_table(file)
        about: dict[str, Any] = json.loads((table.schema.metadata or {})[b"ssl_toolkit"])
        source = np.array(table["source"].to_pylist(), dtype=str)
        names = table["name"].to_pylist()
        sizes, pixels = (np.array(table[name].to_pylist(), dtype=kind) for name, kind in _NUMBERS.items())
        splits = np.array(table["split"].to_pylist(), dtype="<U5")
        has_labels = "label" in table.column_names
        labels = np.array(table["label"].to_pylist(), dtype=np.int64) if has_labels else _NO_LABELS
        found = {}
        for name, facts in about.items():
            chosen = source == name
            found[name] = Assignment(
                [names[place] for place in np.flatnonzero(chosen)], sizes[chosen], pixels[chosen], splits[chosen],
                [str(each) for each in facts["class_names"]], str(facts["settings"]), int(facts["num"]),
                str(facts.get("digest", "")), labels[chosen] if has_labels and chosen.any() else None,
                str(facts.get("targets", "")),
            )  # fmt: skip
    except (pa.ArrowException, KeyError, ValueError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"'{file}' is no split file of a run ({type(error).__name__})") from None
    return found


def kept_places(source: Source, before: Assignment, what: str) -> NDArray[np.int64]:
    """The places in a source, as it is now, of the images that a run was begun with, in their order.

    Args:
        source: The images as they are now.
        before: The assignment of the run.
        what: What to call the images in the message.

    Raises:
        ValueError: In one line, if an image is gone, its file has another size, or its class is another one.
    """
    if not before.names:
        if len(source) != before.num:
            raise ValueError(f"the run was begun with {before.num:,} {what}, now there are {len(source):,}; {_WAYS}")
        if before.digest and before.digest != _digest(source):
            raise ValueError(
                f"names, sizes or classes of the {before.num:,} {what} have changed since the run was begun; {_WAYS}"
            )
        _check_targets(source, before, what)
        return np.arange(len(source))
    place = {source.name(number): number for number in range(len(source))}
    gone = [name for name in before.names if name not in place]
    if gone:
        new = len(place) - (len(before.names) - len(gone))
        renamed = f" (new: {new:,}; were files renamed?)" if new else ""
        raise ValueError(
            f"gone since the run was begun: {len(gone):,} of its "
            f"{counted(before.num, what)}{_such(gone)}{renamed}; {_WAYS}"
        )
    places = np.array([place[name] for name in before.names], dtype=np.int64)
    _check_unchanged(source.sizes()[places] != before.sizes, before, what)
    if list(source.class_names) != before.class_names:
        now, then = len(source.class_names), len(before.class_names)
        other = f"now there are {now:,}" if now != then else "some of which have other names now"
        raise ValueError(f"the run was begun with {counted(then, 'classes')}, {other}; {_WAYS}")
    if before.labels is not None:
        _check_unchanged(source.labels()[places] != before.labels, before, what, "class changed since")
    _check_targets(source, before, what, places)
    return places


def _check_targets(
    source: Source, before: Assignment, what: str, places: NDArray[np.int64] | slice = slice(None)
) -> None:
    if before.targets and before.targets != _digest_of_targets(source, places):
        given = "targets, weights or covariates" if source.frame_labels is None else "weights or labels of frames"
        raise ValueError(f"{given} of the {before.num:,} {what} have changed since the run was begun; {_WAYS}")


def _digest_of_targets(source: Source, places: NDArray[np.int64] | slice = slice(None)) -> str:
    """Of the numbers to predict of some images, their weights, covariates and labels of frames; empty without any."""
    given = source.targets(), source.weights(), source.covariates()
    frame_labels = None
    if source.frame_labels is not None:
        frame_labels = source.frame_labels_of(np.arange(len(source))[places])
    if frame_labels is None and all(numbers is None for numbers in given):
        return ""
    digest = hashlib.blake2b("\0".join(source.target_names).encode(), digest_size=16)
    digest.update("\0".join(source.covariate_names).encode())
    for numbers in given:
        if numbers is not None:
            digest.update(np.ascontiguousarray(numbers[places], dtype="<f4").tobytes())
    if frame_labels is not None:
        digest.update("\0".join(source.class_names).encode())
        digest.update(frame_labels.astype("<i8").tobytes())
    return digest.hexdigest()


def _digest(source: Source) -> str:
    """Of the sizes of all images, and of the names of some all over the source: ten million take a second."""
    digest = hashlib.blake2b(source.sizes().astype("<i8").tobytes(), digest_size=16)
    for number in range(0, len(source), max(1, len(source) // _NAMES_IN_DIGEST)):
        digest.update(f"{source.name(number)}\n".encode())
    if source.labels_may_change:
        digest.update(source.labels().astype("<i8").tobytes())
    return digest.hexdigest()


def check_pixels(images: ImageSet, before: Assignment, what: str) -> None:
    """Refuses images whose pixels are not those that a run was begun with, where both are known.

    Raises:
        ValueError: In one line.
    """
    if images.settings == before.settings and before.pixels.any():
        pixels = images.store.digests(MOST_PIXEL_BYTES)
        if pixels is not None:
            _check_unchanged((pixels != before.pixels) & (before.pixels != 0), before, what)


def _check_unchanged(changed: NDArray[np.bool_], before: Assignment, what: str, how: str = "changed since") -> None:
    if changed.any():
        names = [before.names[place] for place in np.flatnonzero(changed)]
        which = f"{len(names):,} of its {before.num:,} {what}{_such(names)}"
        raise ValueError(f"{how} the run was begun: {which}; {_WAYS}")


def _such(names: list[str]) -> str:
    return f", such as {', '.join(names[:_SHOWN])}"


def seen_in_pretraining(files: Sequence[tuple[str, int]], weights: str | Path) -> int | None:
    """How many of some images were among the training images of the run that made a weights file.

    Images are taken for the same if their files have as many bytes and one name is the end of the other.

    Args:
        files: Name and bytes of each image, as `ImageData.files` gives them.
        weights: The weights file, beside which the run's split file lies.

    Returns:
        The number; None if it cannot be known.
    """
    file = Path(weights).parent / FILE
    if not files or not file.is_file():
        return None
    seen = defaultdict(list)
    for each in read_split_file(file).values():
        for name, size, split in zip(each.names, each.sizes.tolist(), each.splits.tolist(), strict=True):
            if split == "train" and size >= 0:
                seen[size, name.rpartition("/")[2]].append(f"/{name}")
    if not seen:
        return None
    found = 0
    for name, size in files:
        full = f"/{name}"
        others = seen.get((size, full.rpartition("/")[2]), ())
        found += any(full.endswith(other) or other.endswith(full) for other in others)
    return found
