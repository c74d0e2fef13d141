"""Splits of a run's images: training, validation and test, and few-label subsets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from ssl_toolkit.data.dataset import ImageSet
from ssl_toolkit.data.decode import BadImage
from ssl_toolkit.data.formats import not_read
from ssl_toolkit.data.split_file import Assignment, assignment_of
from ssl_toolkit.data.survey import Survey
from ssl_toolkit.errors import counted, nearest
from ssl_toolkit.random import fold_in, sample_keys, uniform

Split = Literal["train", "val", "test"]

_AT_ONCE = 1 << 18


class Fractions(NamedTuple):
    """How images are divided; the fields are arguments of `ImageData`."""

    val_fraction: float
    test_fraction: float
    label_fraction: float
    labels_per_class: int | None
    seed: int


class SplitImages(NamedTuple):
    """The images of a split.

    Attributes:
        images: All images of the source that the split belongs to.
        indices: Sorted int64 array: the numbers in that source of the images of the split.
    """

    images: ImageSet
    indices: NDArray[np.int64]


class SourceImages(NamedTuple):
    """All images of a source.

    Attributes:
        images: These.
        splits: int8 array ``[num]``: the place of each image's split among ``train``, ``val`` and ``test``; -1 for an
            image that is left out.
    """

    images: ImageSet
    splits: NDArray[np.int8]


class Division:
    """The images of a run and their splits.

    The training split is decoded at once, and so are splits of the same source; another source is decoded when one of
    its splits is first asked for.

    Args:
        sets: All images: those to be divided under "train", and those that are a split as they are under its name.
        parts: The places of the images of each split in their set.
        fractions: How few of the training images are labelled.
        shares_source: Whether the validation or the test split is a part of the same source as the training split.
        survey: What some of the training images hold. Their range of numbers is that of all images.

    Raises:
        ValueError: The images are too few, or too many of them are bad.
    """

    def __init__(
        self,
        sets: dict[str, ImageSet],
        parts: dict[str, NDArray[np.int64]],
        fractions: Fractions,
        shares_source: bool,
        survey: Survey,
    ) -> None:
        self._fractions = fractions
        self._sets = sets
        self.survey = survey
        self._parts = parts  # with bad images, which are known only when all have been decoded
        self._splits: dict[str, SplitImages] = {}
        self.shares_source = shares_source
        self.split("train")

    def split(self, name: str) -> SplitImages:
        """The good images of a split.

        Raises:
            ValueError: There is no such split.
        """
        if name not in get_args(Split):
            raise ValueError(f"there is no split {name!r}{nearest(name, get_args(Split))}; it is train, val or test")
        if name not in self._splits:
            images = self._sets.get(name, self._sets["train"])
            indices = images.without_bad(self._parts[name])
            if name == "train":
                indices = self._few_labelled(images, indices)
            self._splits[name] = SplitImages(images, indices)
        return self._splits[name]

    def of_path(self) -> SplitImages:
        """The good images of the path: those that are divided, of all splits."""
        images = self._sets["train"]
        return SplitImages(images, images.without_bad(np.arange(len(images.source))))

    def sources(self) -> list[SourceImages]:
        """All images of each source with their splits; bad ones too, unless only a few of the images are labelled."""
        found = {
            name: SourceImages(images, np.full(len(images.source), -1, np.int8)) for name, images in self._sets.items()
        }
        few = self._fractions.label_fraction != 1 or self._fractions.labels_per_class is not None
        for number, name in enumerate(get_args(Split)):
            places = (self.split(name) if name == "train" and few else self.all_of(name)).indices
            found[name if name in found else "train"].splits[places] = number
        return list(found.values())

    def all_of(self, name: str) -> SplitImages:
        """All images of a split, bad ones too; nothing is decoded for it."""
        return SplitImages(self._sets.get(name, self._sets["train"]), self._parts[name])

    def counts(self) -> dict[str, int]:
        """The number of images of each split, without decoding any: bad ones count until they are known."""
        return {
            name: len(self._splits[name].indices if name in self._splits else self._parts[name])
            for name in get_args(Split)
        }

    def num_groups(self) -> dict[str, int]:
        """How many groups there are in each split that is a part of the main source; empty without groups."""
        groups = self._sets["train"].source.split_groups()
        if groups is None:
            return {}
        return {name: len(np.unique(groups[places])) for name, places in self._parts.items() if len(places)}

    def assignments(self) -> dict[str, Assignment]:
        """The split of each image of each set, for a split file."""
        of_main = {name: places for name, places in self._parts.items() if name not in self._sets or name == "train"}
        return {
            name: assignment_of(images, of_main if name == "train" else {name: self._parts[name]})
            for name, images in self._sets.items()
        }

    def bad_files(self) -> list[BadImage]:
        """The images that could not be decoded, as far as is known."""
        return [error for images in self._sets.values() for error in images.bad_files]

    def not_read(self) -> str:
        """What is to be said of files that are no images; empty if there are none."""
        return not_read(sum((images.source.left_out for images in self._sets.values()), Counter()))

    def _few_labelled(self, images: ImageSet, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        fraction, per_class = self._fractions.label_fraction, self._fractions.labels_per_class
        if fraction == 1 and per_class is None:
            return indices
        labels = images.labels.numpy()[indices]
        return indices[few_labels(labels, self._fractions.seed, fraction=fraction, per_class=per_class)]


def stratified_choice(
    labels: NDArray[np.int64], counts: Sequence[int], seed: int, purpose: str
) -> list[NDArray[np.bool_]]:
    """Stratified choice: the first images of an order in which any leading part has about the same class fractions.

    Within each class the images are shuffled; the one that comes at place ``r`` (from 0) of ``n`` gets the score
    ``(r + 1/2) / n``, and all images are ordered by their scores, ties by chance. The first ``k`` images then hold
    ``k n / N`` of a class of ``n`` out of ``N``, to about one.

    Args:
        labels: int64 array of shape ``[num]``: class numbers, -1 for none (a class like any other here).
        counts: How many of the first images; for each number an answer.
        seed: Of the shuffling.
        purpose: A name that makes this shuffling independent of others with the same seed.

    Returns:
        For each count, a boolean array of shape ``[num]``: whether an image is among the first.
    """
    draws = random_draws(len(labels), seed, purpose)
    sizes = np.bincount(labels + 1)
    scores = places_in_class(labels, draws[0])
    scores = (scores + 0.5) / sizes[labels + 1]
    return [_first(scores, draws[1], count) for count in counts]


def _first(scores: NDArray[np.float64], ties: NDArray[np.float32], count: int) -> NDArray[np.bool_]:
    """Marks the smallest scores; those of one score by the other numbers, and these by their index.

    What is asked for is a set, which does not need all of ten million scores sorted.
    """
    if not count:
        return np.zeros(len(scores), dtype=bool)
    largest = np.partition(scores, count - 1)[count - 1]
    chosen = scores < largest
    equal = np.flatnonzero(scores == largest)
    missing = count - np.count_nonzero(chosen)
    chosen[equal[np.argsort(ties[equal], kind="stable")[:missing]]] = True
    return chosen


def split_indices(
    labels: NDArray[np.int64], val_fraction: float, test_fraction: float, seed: int
) -> dict[str, NDArray[np.int64]]:
    """Test, validation and training images.

    The test images come first in one fixed order, the validation images next, so that another ``val_fraction`` never
    moves an image into the test split or out of it.

    Args:
        labels: int64 array of shape ``[num]``: class numbers, -1 for none.
        val_fraction: Fraction of all images for validation; at least one image unless it is 0.
        test_fraction: Fraction of all images for testing; at least one image unless it is 0.
        seed: Another seed gives another split.

    Returns:
        Sorted int64 arrays under the keys "train", "val" and "test", disjoint and complete.

    Raises:
        ValueError: No image is left for training.
    """
    num = len(labels)
    num_test = max(1, round(num * test_fraction)) if test_fraction else 0
    num_val = max(1, round(num * val_fraction)) if val_fraction else 0
    if num_test + num_val >= num:
        raise ValueError(
            f"{counted(num, 'images')}, too few: {num_val} for validation (data.val_fraction = "
            f"{val_fraction:g}) and {num_test} "
            f"for testing (data.test_fraction = {test_fraction:g}) leave none for training"
        )
    test, held_out = stratified_choice(labels, [num_test, num_test + num_val], seed, "split")
    masks = {"test": test, "val": held_out & ~test, "train": ~held_out}
    return {name: np.flatnonzero(mask) for name, mask in masks.items()}


def few_labels(
    labels: NDArray[np.int64], seed: int, *, fraction: float = 1.0, per_class: int | None = None
) -> NDArray[np.int64]:
    """Few-label subset, stratified: so many images of each class, at least one.

    Args:
        labels: int64 array of shape ``[num]``: class numbers; images with -1 are never chosen.
        seed: Another seed gives another draw.
        fraction: Fraction of the images of each class.
        per_class: Number of images of each class instead; a class that has fewer gives all.

    Returns:
        Sorted int64 places in ``labels``.

    Raises:
        ValueError: No image has a label.
    """
    if not (labels >= 0).any():
        raise ValueError("a few-label subset (label_fraction, labels_per_class) needs images with labels")
    places = places_in_class(labels, random_draws(len(labels), seed, "few labels")[0])
    sizes = np.bincount(labels[labels >= 0])
    wanted = np.maximum(1, np.rint(sizes * fraction)) if per_class is None else np.full(len(sizes), per_class)
    return np.flatnonzero((labels >= 0) & (places < wanted[labels]))


def random_draws(num: int, seed: int, purpose: str) -> NDArray[np.float32]:
    """Two random numbers for each image, drawn in parts, because the hash takes ten times the memory of its result.

    Args:
        num: How many images.
        seed: Another seed gives other numbers.
        purpose: A name that makes them independent of others with the same seed.

    Returns:
        float32 array of shape ``[2, num]``, in [0, 1).
    """
    draws = np.empty((2, num), dtype=np.float32)
    for start in range(0, num, _AT_ONCE):
        part = torch.arange(start, min(start + _AT_ONCE, num))
        draws[:, start : start + _AT_ONCE] = uniform(fold_in(sample_keys(seed, 0, part), purpose), 2).T.numpy()
    return draws


def places_in_class(labels: NDArray[np.int64], draws: NDArray[np.float32]) -> NDArray[np.int64]:
    """The place of each image among those of its class, in the order of their draws (ties by index).

    Args:
        labels: int64 array of shape ``[num]``: class numbers, -1 for none (a class like any other here).
        draws: float32 array of shape ``[num]``.

    Returns:
        int64 array of shape ``[num]``, from 0 in each class.
    """
    order = np.argsort(draws, kind="stable")
    sizes = np.bincount(labels + 1)
    if np.count_nonzero(sizes) > 1:
        # NumPy sorts small integers by counting, seven times as fast as larger ones
        small = (labels + 1).astype(np.uint16 if len(sizes) <= 2**16 else np.int64)
        order = order[np.argsort(small[order], kind="stable")]
    places = np.empty(len(labels), dtype=np.int64)
    ranks = np.arange(len(labels))
    ranks -= np.repeat(np.cumsum(sizes) - sizes, sizes)
    places[order] = ranks
    return places
