"""Source factory: from the arguments of `ImageData` to its sources."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ssl_toolkit.data.cache import default_cache_dir
from ssl_toolkit.data.console import say
from ssl_toolkit.data.dataset import ImageSet, ReadOptions
from ssl_toolkit.data.shards import ShardOptions, ShardSource
from ssl_toolkit.data.shards.remote import is_remote, plain
from ssl_toolkit.data.shards.table_source import ShardTableSource
from ssl_toolkit.data.sources import FolderSource, LabelKind, Source, SubsetSource
from ssl_toolkit.data.splits import stratified_choice
from ssl_toolkit.data.table import ROLES, read_table
from ssl_toolkit.data.table_source import SPLITS, TableSource
from ssl_toolkit.data.torchvision_sets import TorchvisionSource, has_test_split
from ssl_toolkit.distributed.ranks import is_rank_zero
from ssl_toolkit.errors import nearest

FILE_SOURCES = ("folder", "shards")
_ALIASES = frozenset(alias for aliases in SPLITS.values() for alias in aliases)


class Origin(NamedTuple):
    """Where images come from; the fields are arguments of `ImageData`."""

    path: str | None
    source: str
    val_path: str | None
    test_path: str | None
    labels: LabelKind
    download: bool
    max_images: int | None
    split_seed: int
    shards: ShardOptions = ShardOptions()
    table: str | None = None
    columns: tuple[tuple[str, str], ...] = ()
    targets: tuple[str, ...] = ()
    covariates: tuple[str, ...] = ()
    # what columns of the table may be for
    roles: tuple[str, ...] = ROLES

    @property
    def title(self) -> str:
        """What to call the images in messages."""
        if self.table is not None:
            return self.table
        return plain(f"{self.path}") if self.source in FILE_SOURCES else self.source

    @property
    def is_remote(self) -> bool:
        """Whether the images are not on this machine."""
        return self.source == "shards" and is_remote(f"{self.path}")


def open_sets(origin: Origin, options: ReadOptions) -> dict[str, ImageSet]:
    """All images of a run: those to be divided under "train", and those that are a split as they are under its name.

    Raises:
        ValueError: As for `open_sources`.
    """
    sources = open_sources(origin, options)
    return {name: ImageSet(source, options, is_rank_zero()) for name, source in sources.items()}


def open_sources(origin: Origin, options: ReadOptions) -> dict[str, Source]:
    """The sources of a run.

    Returns:
        The main one under "train", and under "val" and "test" those that are not a part of it.

    Raises:
        ValueError: An image folder or a data set is not there, or arguments contradict each other.
    """
    kind, _, data_set = origin.source.partition(":")
    if kind not in ("folder", "shards", "procedural", "torchvision"):
        choices = ("folder", "shards", "procedural", "torchvision:CIFAR10")
        raise ValueError(
            f"data.source must be folder, shards, procedural or torchvision:NAME, got {origin.source!r}"
            f"{nearest(origin.source, choices)}"
        )
    for name, path in (("val_path", origin.val_path), ("test_path", origin.test_path)):
        if path is not None and kind not in FILE_SOURCES:
            raise ValueError(f"data.{name} needs data.source: folder or shards, but the source is {origin.source}")
    if kind != "shards" and origin.shards[:2] != (None, None):
        raise ValueError(
            f"data.index and data.shard_window are for data.source: shards, but the source is {origin.source}"
        )
    if origin.targets and origin.table is None and kind != "procedural":
        raise ValueError("data.targets are columns of data.table, but there is none; give the table")
    if origin.covariates and origin.table is None and kind != "procedural":
        raise ValueError("data.covariates are columns of data.table, but there is none; give the table")
    if origin.table is not None:
        return {"train": _open_table(origin, options)}
    check_no_columns(origin)
    if kind == "procedural":
        return {"train": _open_procedural(origin, options)}
    if kind == "torchvision":
        return _open_torchvision(origin, data_set, options)
    return _open_files(origin, options)


def _open_procedural(origin: Origin, options: ReadOptions) -> Source:
    from ssl_toolkit.data.procedural import ProceduralSource

    number = {} if origin.max_images is None else {"num_images": origin.max_images}
    return ProceduralSource(
        **number, image_size=options.image_size, seed=origin.split_seed, targets=origin.targets,
        covariates=origin.covariates,
    )  # fmt: skip


def _open_table(origin: Origin, options: ReadOptions) -> Source:
    if origin.source not in FILE_SOURCES:
        raise ValueError(
            f"data.table names files of a folder or of shards, but data.source is {origin.source}; leave one out"
        )
    check_one_path(origin)
    if origin.source == "shards":
        source = _open_shard_table(origin, options)
    else:
        source = TableSource(
            f"{origin.table}", origin.path, origin.labels, options.image_size, options.channels, dict(origin.columns),
            origin.targets, origin.covariates, origin.roles,
        )  # fmt: skip
    if is_rank_zero():
        say(source.summary())
    return _limit(source, origin)


def _open_shard_table(origin: Origin, options: ReadOptions) -> ShardTableSource:
    if origin.path is None:
        raise ValueError("data.path is missing: give the tar shards whose images the table names")
    read = read_table(f"{origin.table}", dict(origin.columns), origin.targets, origin.covariates, origin.roles)
    # other classes than those of the table's images have nothing to say
    labels = "none" if origin.labels == "folder" or "label" in read.values else origin.labels
    shards = _open(origin.path, origin._replace(labels=labels), options)
    assert isinstance(shards, ShardSource)
    return ShardTableSource(read, shards, origin.labels, origin.path, origin.targets, origin.covariates)


def _open_files(origin: Origin, options: ReadOptions) -> dict[str, Source]:
    if origin.path is None:
        what = "tar shards" if origin.source == "shards" else "folder of images"
        raise ValueError(f"data.path is missing: give the {what}, or set data.source: procedural")
    check_apart(origin)
    main = _open(origin.path, origin, options)
    _check_no_splits(main, origin)
    sources = {"train": _limit(main, origin)}
    for name, path in (("val", origin.val_path), ("test", origin.test_path)):
        if path is not None:
            sources[name] = _open(path, origin, options, main.class_names)
    return sources


def check_no_columns(origin: Origin) -> None:
    """Refuses columns of no table."""
    if origin.columns:
        raise ValueError("data.columns are those of data.table, but there is none; give the table")


def check_one_path(origin: Origin, noun: str = "images") -> None:
    """Refuses paths of splits beside a table."""
    for name, path in (("val_path", origin.val_path), ("test_path", origin.test_path)):
        if path is not None:
            raise ValueError(f"data.{name} does not go with data.table: say in a column `split` which {noun} they are")


def check_apart(origin: Origin) -> None:
    """Refuses folders or shards of which one holds the images of another."""
    given = [(f"data.{name}", getattr(origin, name)) for name in ("path", "val_path", "test_path")]
    places = [(name, path) for name, path in given if path is not None]
    for number, (name, path) in enumerate(places):
        for other, other_path in places[:number]:
            if _overlap(path, other_path):
                raise ValueError(
                    f"{name} ({plain(path)}) and {other} ({plain(other_path)}) hold the same images, which would be in "
                    f"two splits; give folders that lie apart, or leave {name} out and divide by data.val_fraction and "
                    "data.test_fraction"
                )


def _overlap(first: str, second: str) -> bool:
    if first == second:
        return True
    if is_remote(first) or is_remote(second):
        return False
    one, other = (Path(each).expanduser().resolve() for each in (first, second))
    return one == other or (one.is_dir() and one in other.parents) or (other.is_dir() and other in one.parents)


def _check_no_splits(source: Source, origin: Origin) -> None:
    """Refuses classes that are the folders of splits."""
    names = {name.lower(): name for name in source.class_names}
    found = {split: next((names[each] for each in aliases if each in names), None) for split, aliases in SPLITS.items()}
    if found["train"] is None or not (found["val"] or found["test"]) or not names.keys() <= _ALIASES:
        return
    options = [f"--data.path {origin.path}/{found['train']}"]
    options += [f"--data.{split}_path {origin.path}/{found[split]}" for split in ("val", "test") if found[split]]
    raise ValueError(
        f"the folder '{origin.path}' has no classes but the splits {', '.join(source.class_names)}: give "
        + " ".join(options)
    )


def _open(path: str, origin: Origin, options: ReadOptions, class_names: Sequence[str] = ()) -> Source:
    arguments = (path, origin.labels, options.image_size, options.channels, class_names or None)
    if origin.source == "folder":
        return FolderSource(*arguments)
    return ShardSource(
        *arguments,
        options=origin.shards,
        cache_dir=options.cache_dir,
        num_threads=options.num_threads,
        progress=is_rank_zero(),
    )


def _open_torchvision(origin: Origin, data_set: str, options: ReadOptions) -> dict[str, Source]:
    name, _, split = data_set.partition(":")
    root = origin.path or default_cache_dir() / "torchvision"
    size, channels = options.image_size, options.channels
    main = TorchvisionSource(name, root, split or "train", origin.download, size, channels)
    sources = {"train": _limit(main, origin)}
    if has_test_split(name):
        sources["test"] = TorchvisionSource(name, root, "test", origin.download, size, channels)
    return sources


def _limit(source: Source, origin: Origin) -> Source:
    """Keeps ``max_images`` of the images, every class in proportion."""
    if origin.max_images is None or origin.max_images >= len(source):
        return source
    (chosen,) = stratified_choice(source.labels(), [origin.max_images], origin.split_seed, "max_images")
    return SubsetSource(source, np.flatnonzero(chosen))
