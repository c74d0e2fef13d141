"""Folds: images divided into parts of which each is the test split of one run (k-fold cross-validation)."""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ssl_toolkit.data.group_splits import split_by_group
from ssl_toolkit.data.splits import split_indices
from ssl_toolkit.random import number, permutations, sample_keys

_SHOWN = 4


class Fold(NamedTuple):
    """One of several folds.

    Attributes:
        number: Of the fold that is tested, from 1.
        of: How many folds there are.
    """

    number: int
    of: int


def read_fold(text: str | None, test_fraction: float = 0.0, **others: str | None) -> Fold | None:
    """Reads a fold such as "2/5"; None for none.

    Args:
        text: The fold.
        test_fraction: What else would say which images are tested, or 0.
        **others: Likewise, by the name of the setting.

    Raises:
        ValueError: It is none, or something else is given.
    """
    if text is None:
        return None
    found = re.fullmatch(r"\s*(\d{1,9})\s*/\s*(\d{1,9})\s*", str(text))
    fold = Fold(int(found[1]), int(found[2])) if found else Fold(0, 0)
    if not (fold.of >= 2 and 1 <= fold.number <= fold.of):
        raise ValueError(f"data.fold is {text!r}, expected such as 2/5: the second of five folds, at least 2 of them")
    given = next((name for name, value in others.items() if value is not None), None)
    if given is not None:
        raise ValueError(f"data.fold (--folds) divides all images, so that data.{given} does not go with it")
    if test_fraction:
        raise ValueError(
            f"data.fold says which images are tested, but data.test_fraction is {test_fraction:g}: set it to 0"
        )
    return fold


def stratified_folds(labels: Tensor, num_folds: int, seed: int = 0, groups: Tensor | None = None) -> Tensor:
    """Stratified folds: the same fraction of each class in each, as nearly as their numbers allow.

    Args:
        labels: int64 tensor of shape ``[num_images]``: classes from 0.
        num_folds: How many folds, at least 2 and at most as many as images (or groups).
        seed: Of the division.
        groups: int64 tensor of shape ``[num_images]``: images of one group (a patient's) are in one fold. The largest
            groups are placed first, each where its classes are rarest.

    Returns:
        int64 tensor of shape ``[num_images]``: the fold of each image.

    Raises:
        ValueError: If there are fewer than 2 folds, more folds than images or groups, or images without a label.
    """
    if not 2 <= num_folds <= len(labels):
        raise ValueError(f"{len(labels)} images can be divided into 2 to {len(labels)} folds, got {num_folds}")
    if int(labels.min()) < 0:
        raise ValueError(f"folds need labels, but {int((labels < 0).sum())} of {len(labels)} images have none")
    key = sample_keys(number("folds", seed), 0, torch.zeros(1, dtype=torch.int64))[0]
    if groups is not None:
        return _grouped_folds(labels, num_folds, key, groups)
    shuffled = permutations(key, len(labels)).to(labels.device)
    # class after class, so that each class goes round the folds from where the one before ended
    order = shuffled[labels[shuffled].argsort(stable=True)]
    folds = torch.empty_like(labels)
    folds[order] = torch.arange(len(labels), device=labels.device) % num_folds
    return folds


def _grouped_folds(labels: Tensor, num_folds: int, key: Tensor, groups: Tensor) -> Tensor:
    _, group = groups.cpu().unique(return_inverse=True)
    counts = torch.zeros(int(group.max()) + 1, int(labels.max()) + 1)
    counts.index_put_((group, labels.cpu()), torch.ones(len(group)), accumulate=True)
    if num_folds > len(counts):
        raise ValueError(f"{len(counts)} groups can be divided into 2 to {len(counts)} folds, got {num_folds}")
    # the largest first, those of one size by chance
    shuffled = permutations(key, len(counts))
    order = shuffled[counts.sum(dim=1)[shuffled].argsort(descending=True, stable=True)]
    share = counts.sum(dim=0) / num_folds
    filled, fold_of = torch.zeros(num_folds, counts.shape[1]), torch.empty(len(counts), dtype=torch.int64)
    for place, one in enumerate(order.tolist()):
        # as far from an even division as each choice would be; an empty fold has to get one while there are enough
        distance = ((filled + counts[one] - share).square() - (filled - share).square()).sum(dim=1)
        empty = filled.sum(dim=1) == 0
        if len(order) - place <= int(empty.sum()):
            distance[~empty] = torch.inf
        fold_of[one] = int(distance.argmin())
        filled[fold_of[one]] += counts[one]
    return fold_of[group].to(labels.device)


def split_by_fold(
    labels: NDArray[np.int64], first: NDArray[np.int64], by_group: bool, val_fraction: float, fold: Fold, seed: int
) -> dict[str, NDArray[np.int64]]:
    """Test, validation and training images, of which the test images are a fold.

    Args:
        labels: int64 array of shape ``[num]``: class numbers, -1 for none. All images have a class, or none has.
        first: int64 array of shape ``[num]``: the first image of those that each has to be together with.
        by_group: Whether these are groups, of which every image counts, and not copies, which count as one.
        val_fraction: Fraction of the images of the other folds for validation.
        fold: Which one is tested.
        seed: Another seed gives other folds.

    Returns:
        Sorted int64 arrays under the keys "train", "val" and "test", disjoint and complete.

    Raises:
        ValueError: There are fewer images or groups than folds, some have no class, or none is left for training.
    """
    own = np.arange(len(labels))
    counted = own if by_group else np.flatnonzero(first == own)
    classes = labels[counted] if (labels >= 0).any() else np.zeros(len(counted), dtype=np.int64)
    groups = torch.from_numpy(first) if by_group else None
    folds = np.empty(len(labels), dtype=np.int64)
    folds[counted] = stratified_folds(torch.from_numpy(classes), fold.of, seed, groups).numpy()
    if not by_group:
        folds = folds[first]
    is_tested = folds == fold.number - 1
    rest = counted[~is_tested[counted]]
    if by_group:
        drawn = split_by_group(labels[rest], first[rest], val_fraction, 0.0, seed)
    else:
        drawn = split_indices(labels[rest], val_fraction, 0.0, seed)
    splits = np.where(is_tested, "test", "train")
    splits[rest[drawn["val"]]] = "val"
    if not by_group:
        splits = splits[first]
    return {name: np.flatnonzero(splits == name) for name in ("train", "val", "test")}


def fold_remarks(
    labels: NDArray[np.int64], parts: dict[str, NDArray[np.int64]], class_names: list[str], fold: Fold
) -> list[str]:
    """What is to be said of classes that are missing in a fold or in what it is compared with.

    Args:
        labels: int64 array of shape ``[num]``: class numbers, -1 for none.
        parts: The places of each split.
        class_names: Of all classes.
        fold: Which one is tested.
    """
    remarks = []
    for name, what in (("train", "is trained"), ("test", "is tested")):
        missing = sorted({*range(len(class_names))} - {*labels[parts[name]].tolist()})
        if missing:
            shown = ", ".join(class_names[place] for place in missing[:_SHOWN]) + ", ..." * (len(missing) > _SHOWN)
            remarks.append(
                f"fold {fold.number} of {fold.of}: no image {what} of {shown}, which has too few images or groups"
            )
    return remarks
