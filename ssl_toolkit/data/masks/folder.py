"""Masks in a folder of PNG files beside a folder of images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from ssl_toolkit.data.decode import BadImage
from ssl_toolkit.data.decode_pool import READ_TIMEOUT, ReadingThreads, reading
from ssl_toolkit.data.divided import DividedData
from ssl_toolkit.data.folders import find_images
from ssl_toolkit.data.masks.base import Masks
from ssl_toolkit.data.masks.files import IGNORE, Stored, decoded_places, read_mask, stored_as
from ssl_toolkit.data.splits import Split
from ssl_toolkit.distributed.ranks import num_cores
from ssl_toolkit.errors import counted, printable

_SPLITS: tuple[Split, ...] = get_args(Split)
_AT_ONCE = 256


class FolderMasks(Masks):
    """Masks in a folder: of ``cats/01.jpg`` below the folder of images it is ``cats/01.png`` below this one.

    Args:
        folder: The folder.
        data: Images in a folder.
        image_size: As for `open_masks`.
        num_classes: As for `open_masks`.
        count: As for `open_masks`.

    Raises:
        ValueError: In one line, for masks that are not there or do not fit, by their names.
    """

    def __init__(
        self,
        folder: str | Path,
        data: DividedData,
        image_size: int,
        num_classes: int | None = None,
        count: Callable[[int], None] = lambda num: None,
    ) -> None:
        self._folder = Path(folder).expanduser()
        self._image_size = image_size
        self.title = str(folder)
        self._paths = {split: data.paths(split) for split in _SPLITS}
        if not any(self._paths.values()):
            raise ValueError(f"--masks needs images in a folder, but they are {data.title}")
        self._masks = self._find(data)
        self._threads = ReadingThreads(min(8, num_cores()), READ_TIMEOUT)
        found = self._look(count)
        self.class_names = [f"class {number}" for number in range(num_classes or 1 + max(found))]
        self._check_classes(found, num_classes)

    def members(self, split: Split) -> NDArray[np.int64]:
        return np.array(sorted(self._masks[split]), dtype=np.int64)

    def name(self, index: int) -> str:
        """What the threads call a mask, whose number counts all of them."""
        return str(self._all[index][2])

    def read(
        self, split: Split, indices: NDArray[np.int64], sizes: NDArray[np.int64], rows: NDArray[np.int64],
        columns: NDArray[np.int64],
    ) -> NDArray[np.uint8]:  # fmt: skip
        def part(place: int, number: int) -> NDArray[np.uint8]:
            reading(self, number)
            height, width = sizes[place].tolist()
            of_rows, of_columns = decoded_places(self._stored[number], self._image_size, height, width)
            mask = self._read(number)
            return mask[of_rows[rows[place]]][:, of_columns[columns[place]]]

        numbers = [self._masks[split][index] for index in indices.tolist()]
        futures = [self._threads.submit(part, place, number) for place, number in enumerate(numbers)]
        return np.stack([self._threads.result(future) for future in futures])

    def _find(self, data: DividedData) -> dict[Split, dict[int, int]]:
        """The mask of each image that has one: for each split, by the image's number, the number of the mask."""
        for split, paths in self._paths.items():
            folder = self._folder.resolve()
            inside = next((path for path in paths.values() if folder in path.resolve().parents), None)
            if inside is not None:
                raise ValueError(
                    f"the folder of masks '{self._folder}' lies among the images, or they in it: {inside} is read as "
                    f"an image of the {split} split; give folders that lie apart"
                )
        listing = find_images(self._folder).images
        # of files that differ in their endings alone it is the PNG
        names = sorted((file.name for file in listing), key=lambda name: name.lower().endswith(".png"))
        files = {_stem(name): name for name in names}
        self._all: list[tuple[Split, Path, Path]] = []
        masks: dict[Split, dict[int, int]] = {split: {} for split in _SPLITS}
        owner: dict[str, Path] = {}
        for split in _SPLITS:
            for index in data.indices(split).tolist():
                path, stem = self._paths[split][index], _stem(data.name(split, index))
                if stem not in files:
                    continue
                if (other := owner.setdefault(stem, path)) != path:
                    raise ValueError(
                        f"two images, {printable(str(other))} and {printable(str(path))}, would have the same mask "
                        f"'{printable(files[stem])}'; give them different names"
                    )
                masks[split][index] = len(self._all)
                self._all.append((split, path, self._folder / files[stem]))
        self._check_splits(data, masks)
        num_images = sum(data.num_images(split) for split in _SPLITS)
        counts = ", ".join(f"{len(masks[split]):,} {split}" for split in _SPLITS)
        self.remarks = [f"masks: {len(self._all):,} of {num_images:,} images have one ({counts})"]
        if missing := num_images - len(self._all):
            self.remarks.append(f"masks: {counted(missing, 'images')} without one left out")
        if spare := len(listing) - len(self._all):
            self.remarks.append(f"masks: {counted(spare, 'files')} in '{self._folder}' of no image of the splits")
        return masks

    def _check_splits(self, data: DividedData, masks: dict[Split, dict[int, int]]) -> None:
        for split in _SPLITS:
            if masks[split]:
                continue
            examples = [data.name(split, index) for index in data.indices(split)[:1].tolist()]
            looked = f", such as '{printable(_stem(examples[0]))}.png' of {printable(examples[0])}" if examples else ""
            raise ValueError(
                f"none of the {data.num_images(split):,} images of the {split} split has a mask in '{self._folder}'"
                f"{looked}: a mask has the name of its image, ending in .png"
            )

    def _look(self, count: Callable[[int], None]) -> dict[int, str]:
        """Looks at each mask; for each value the name of a mask that has it."""
        self._stored: list[Stored] = []
        found: dict[int, str] = {}
        for start in range(0, len(self._all), _AT_ONCE):
            numbers = range(start, min(start + _AT_ONCE, len(self._all)))
            futures: list[Future[tuple[Stored, list[int]]]] = [
                self._threads.submit(self._look_at, number) for number in numbers
            ]
            for number, future in zip(numbers, futures, strict=True):
                stored, values = self._threads.result(future)
                self._stored.append(stored)
                for value in values:
                    found.setdefault(value, self.name(number))
            count(len(numbers))
        if not found.keys() - {IGNORE}:
            raise ValueError(f"all pixels of the masks in '{self._folder}' are {IGNORE}, which means that none counts")
        self.remarks.append(f"masks: the values {_ranges(sorted(found))}{_ignored(found)}")
        found.pop(IGNORE, None)
        return found

    def _look_at(self, number: int) -> tuple[Stored, list[int]]:
        reading(self, number)
        _, path, file = self._all[number]
        try:
            stored = stored_as(path, str(path))
        except BadImage as error:
            raise ValueError(f"the image {error}") from None
        mask = self._read(number)
        if mask.shape != stored.upright:
            height, width = stored.upright
            raise ValueError(
                f"the mask {printable(str(file))} has {mask.shape[1]} x {mask.shape[0]} pixels, its image "
                f"{printable(str(path))} {width} x {height}: each pixel of an image needs its own"
            )
        return stored, np.flatnonzero(np.bincount(mask.ravel(), minlength=256)).tolist()

    def _read(self, number: int) -> NDArray[np.uint8]:
        file = self._all[number][2]
        try:
            return read_mask(file, str(file))
        except BadImage as error:
            raise ValueError(f"the mask {error}") from None

    def _check_classes(self, found: dict[int, str], num_classes: int | None) -> None:
        """Refuses values that are no class, and masks of one class."""
        if num_classes is not None and (high := max(found)) >= num_classes:
            raise ValueError(
                f"the mask {printable(found[high])} has the value {high}, but --mask_classes {num_classes} makes the "
                f"classes 0 to {num_classes - 1}, and {IGNORE} for pixels that do not count"
            )
        if len(found) < 2:
            raise ValueError(
                f"all pixels of the masks in '{self._folder}' are of class {next(iter(found))} or {IGNORE}, which "
                f"means that a pixel does not count; there is nothing to tell apart (an object that is drawn as "
                f"{IGNORE} should be 1)"
            )


def _stem(name: str) -> str:
    """A name without its ending."""
    folder, _, base = name.rpartition("/")
    stem = base.rpartition(".")[0] or base
    return f"{folder}/{stem}" if folder else stem


def _ranges(values: Sequence[int]) -> str:
    """As ``0 to 5, 7``, without 255."""
    runs: list[list[int]] = []
    for value in values:
        if value == IGNORE:
            continue
        if runs and runs[-1][-1] == value - 1:
            runs[-1].append(value)
        else:
            runs.append([value])
    return ", ".join(", ".join(map(str, run)) if len(run) < 3 else f"{run[0]} to {run[-1]}" for run in runs)


def _ignored(found: dict[int, str]) -> str:
    return f", and {IGNORE} for pixels that do not count" if IGNORE in found else ""
