"""From the arguments of `ImageData` to its sources."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ssl_toolkit.data.cache import default_cache_dir
from ssl_toolkit.data.image_set import ImageSet, ReadOptions
from ssl_toolkit.data.sources import FolderSource, LabelKind, Source, SubsetSource
from ssl_toolkit.data.splits import stratified_order
from ssl_toolkit.data.torchvision_sets import TorchvisionSource, has_test_split
from ssl_toolkit.errors import nearest
from ssl_toolkit.processes import is_first_process


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

    @property
    def title(self) -> str:
        """What to call the images in messages."""
        return f"{self.path}" if self.source == "folder" else self.source


def open_sets(origin: Origin, options: ReadOptions) -> dict[str, ImageSet]:
    """All images of a run: those to be divided under "train", and those that are a split as they are under its name.

    Raises:
        ValueError: As for `open_sources`.
    """
    sources = open_sources(origin, options)
    return {name: ImageSet(source, options, is_first_process()) for name, source in sources.items()}


def open_sources(origin: Origin, options: ReadOptions) -> dict[str, Source]:
    """The sources of a run.

    Returns:
        The main one under "train", and under "val" and "test" those that are not a part of it.

    Raises:
        ValueError: An image folder or a data set is not there, or arguments contradict each other.
    """
    kind, _, data_set = origin.source.partition(":")
    if kind not in ("folder", "procedural", "torchvision"):
        choices = ("folder", "procedural", "torchvision:CIFAR10")
        raise ValueError(
            f"data.source must be folder, procedural or torchvision:NAME, got {origin.source!r}"
            f"{nearest(origin.source, choices)}"
        )
    for name, path in (("val_path", origin.val_path), ("test_path", origin.test_path)):
        if path is not None and kind != "folder":
            raise ValueError(f"data.{name} needs data.source: folder, but the source is {origin.source}")
    if kind == "procedural":
        return {"train": _open_procedural(origin, options)}
    if kind == "torchvision":
        return _open_torchvision(origin, data_set, options)
    return _open_folders(origin, options)


def _open_procedural(origin: Origin, options: ReadOptions) -> Source:
    from ssl_toolkit.data.procedural import ProceduralSource

    number = {} if origin.max_images is None else {"num_images": origin.max_images}
    return ProceduralSource(**number, image_size=options.image_size, seed=origin.split_seed)


def _open_folders(origin: Origin, options: ReadOptions) -> dict[str, Source]:
    if origin.path is None:
        raise ValueError("data.path is missing: give the folder of images, or set data.source: procedural")
    size, channels = options.image_size, options.channels
    main = FolderSource(origin.path, origin.labels, size, channels)
    sources = {"train": _limit(main, origin)}
    for name, path in (("val", origin.val_path), ("test", origin.test_path)):
        if path is not None:
            sources[name] = FolderSource(path, origin.labels, size, channels, main.class_names or None)
    return sources


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
    labels = np.array([source.label(index) for index in range(len(source))], dtype=np.int64)
    order = stratified_order(labels, origin.split_seed, "max_images")
    return SubsetSource(source, np.sort(order[: origin.max_images]))
