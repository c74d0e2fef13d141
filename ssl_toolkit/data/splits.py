"""Dividing images into training, validation and test splits, and choosing few labelled ones."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from ssl_toolkit.random import fold, sample_keys, uniform


def stratified_order(labels: NDArray[np.int64], seed: int, purpose: str) -> NDArray[np.int64]:
    """An order of the images such that any leading part has about the same share of every class.

    Within each class the images are shuffled; the one that comes at place ``r`` (from 0) of ``n`` gets the score
    ``(r + 1/2) / n``, and all images are sorted by their scores, ties by chance. The first ``k`` images then hold
    ``k n / N`` of a class of ``n`` out of ``N``, to about one.

    Args:
        labels: int64 array of shape ``[num]``: class numbers, -1 for none (a class like any other here).
        seed: Of the shuffling.
        purpose: A name that makes this shuffling independent of others with the same seed.

    Returns:
        int64 permutation of ``0 .. num - 1``.
    """
    draws = _draws(len(labels), seed, purpose)
    _, number, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    scores = (_places(labels, draws[0]) + 0.5) / sizes[number]
    return np.lexsort([draws[1], scores])


def split_indices(
    labels: NDArray[np.int64], val_fraction: float, test_fraction: float, seed: int
) -> dict[str, NDArray[np.int64]]:
    """Test, validation and training images.

    The test images come first in one fixed order, the validation images next, so that another ``val_fraction`` never
    moves an image into the test split or out of it.

    Args:
        labels: int64 array of shape ``[num]``: class numbers, -1 for none.
        val_fraction: Share of all images for validation; at least one image unless it is 0.
        test_fraction: Share of all images for testing; at least one image unless it is 0.
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
            f"{num} images are too few: {num_val} for validation (data.val_fraction = {val_fraction:g}) and {num_test} "
            f"for testing (data.test_fraction = {test_fraction:g}) leave none for training"
        )
    order = stratified_order(labels, seed, "split")
    parts = np.split(order, [num_test, num_test + num_val])
    return {name: np.sort(part) for name, part in zip(("test", "val", "train"), parts, strict=True)}


def few_labels(
    labels: NDArray[np.int64], seed: int, *, fraction: float = 1.0, per_class: int | None = None
) -> NDArray[np.int64]:
    """A small labelled set, stratified: so many images of each class, at least one.

    Args:
        labels: int64 array of shape ``[num]``: class numbers; images with -1 are never chosen.
        seed: Another seed gives another draw.
        fraction: Share of the images of each class.
        per_class: Number of images of each class instead; a class that has fewer gives all.

    Returns:
        Sorted int64 places in ``labels``.

    Raises:
        ValueError: No image has a label.
    """
    if not (labels >= 0).any():
        raise ValueError("a few-label subset (label_fraction, labels_per_class) needs images with labels")
    places = _places(labels, _draws(len(labels), seed, "few labels")[0])
    sizes = np.bincount(labels[labels >= 0])
    wanted = np.maximum(1, np.rint(sizes * fraction)) if per_class is None else np.full(len(sizes), per_class)
    return np.flatnonzero((labels >= 0) & (places < wanted[labels]))


def _draws(num: int, seed: int, purpose: str) -> NDArray[np.float32]:
    keys = fold(sample_keys(seed, 0, torch.arange(num)), purpose)
    return uniform(keys, 2).T.numpy()


def _places(labels: NDArray[np.int64], draws: NDArray[np.float32]) -> NDArray[np.int64]:
    """The place of each image among those of its class, in the order of their draws (ties by index)."""
    order = np.lexsort([draws, labels])
    starts = np.searchsorted(labels[order], labels[order], side="left")
    places = np.empty(len(labels), dtype=np.int64)
    places[order] = np.arange(len(labels)) - starts
    return places
