"""Splits by group: all images of a patient, a video or a writer are in one split."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ssl_toolkit.data.splits import places_in_class, random_draws
from ssl_toolkit.errors import counted


def joined(first: NDArray[np.int64], second: NDArray[np.int64]) -> NDArray[np.int64]:
    """Groups of two kinds made one: images are together if either kind has them together, or a chain of both.

    Args:
        first: int64 array of shape ``[num]``: of each image the group by one kind.
        second: Likewise, by another kind.

    Returns:
        int64 array of shape ``[num]``: the index of the first image that each one is together with.
    """
    kinds = [np.unique(kind, return_inverse=True)[1] for kind in (first, second)]
    lowest = np.arange(len(first))
    while True:
        before = lowest
        for kind in kinds:
            of_group = np.full(kind.max(initial=-1) + 1, len(first))
            np.minimum.at(of_group, kind, lowest)
            lowest = of_group[kind]
        if (lowest == before).all():
            return lowest


def split_by_group(
    labels: NDArray[np.int64], groups: NDArray[np.int64], val_fraction: float, test_fraction: float, seed: int
) -> dict[str, NDArray[np.int64]]:
    """Test, validation and training images, each group in one of them.

    Groups are ordered by chance, so that any leading part has about the same fractions of classes (a group's class is
    that of most of its images). The first ones are the test split and the next ones the validation split, as many as
    come nearest to the fraction of the images, and at least one of each.

    Args:
        labels: int64 array of shape ``[num]``: class numbers, -1 for none.
        groups: int64 array of shape ``[num]``: the group of each image.
        val_fraction: Fraction of all images for validation.
        test_fraction: Fraction of all images for testing.
        seed: Another seed gives another split.

    Returns:
        Sorted int64 arrays under the keys "train", "val" and "test", disjoint and complete.

    Raises:
        ValueError: There are too few groups.
    """
    _, group = np.unique(groups, return_inverse=True)
    sizes = np.bincount(group)
    held_out = [(name, share) for name, share in (("test", test_fraction), ("val", val_fraction)) if share]
    if len(sizes) <= len(held_out):
        parts = " and ".join(f"data.{name}_fraction = {share:g}" for name, share in held_out)
        raise ValueError(
            f"{counted(len(sizes), 'groups')}, too few: {parts} and the training images need a group each at least"
        )
    classes = _most_frequent(labels, group)
    first, ties = random_draws(len(sizes), seed, "groups")
    scores = (places_in_class(classes, first) + 0.5) / np.bincount(classes + 1)[classes + 1]
    order = np.lexsort((ties, scores))
    ends = np.cumsum(sizes[order])
    splits = np.full(len(sizes), "train", dtype="<U5")
    begin = 0
    for left, (name, share) in zip(range(len(held_out), 0, -1), held_out, strict=True):
        target = share * len(labels) + (ends[begin - 1] if begin else 0)
        most = len(sizes) - left  # what comes after needs a group each
        end = begin + 1 + int(np.argmin(np.abs(ends[begin:most] - target)))
        splits[order[begin:end]] = name
        begin = end
    return {name: np.flatnonzero(splits[group] == name) for name in ("train", "val", "test")}


def _most_frequent(labels: NDArray[np.int64], groups: NDArray[np.int64]) -> NDArray[np.int64]:
    """The class of most images of each group, of those of one number the lowest."""
    pairs, counts = np.unique(np.stack([groups, labels]), axis=1, return_counts=True)
    order = np.lexsort((pairs[1], -counts, pairs[0]))
    leading = np.unique(pairs[0][order], return_index=True)[1]
    return pairs[1][order][leading]
