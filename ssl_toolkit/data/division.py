"""Division of a run's images into splits: by fractions, without copies on both sides, or as another run has it."""

from __future__ import annotations

from typing import get_args

import numpy as np
from numpy.typing import NDArray

from ssl_toolkit.data.console import say
from ssl_toolkit.data.copies import copied_files, copied_pixels
from ssl_toolkit.data.dataset import ImageSet
from ssl_toolkit.data.folds import Fold, fold_remarks, split_by_fold
from ssl_toolkit.data.group_splits import joined, split_by_group
from ssl_toolkit.data.split_file import Assignment, check_pixels, kept_places
from ssl_toolkit.data.splits import Division, Fractions, Split, split_indices
from ssl_toolkit.data.survey import Survey
from ssl_toolkit.distributed.ranks import is_rank_zero
from ssl_toolkit.errors import counted

Parts = dict[str, NDArray[np.int64]]
_NEW = "?"
_FEWEST_DISTINCT = 4


def divide(
    sets: dict[str, ImageSet],
    fractions: Fractions,
    split_seed: int,
    known: Assignment | None = None,
    noun: str = "images",
    fold: Fold | None = None,
) -> Division:
    """Divides the images of a new run.

    Identical images are on one side: they are divided as one. Images of a validation or test set of its own that are
    also among the training images are left out of these.

    Args:
        sets: All images: those to be divided under "train", and those that are a split as they are under its name.
        fractions: How they are divided.
        split_seed: Another seed gives another division.
        known: Splits that images keep, by their names; only new ones are divided.
        noun: What to call the images.
        fold: The test images are this fold, and not a fraction.

    Raises:
        ValueError: In one line, for images that cannot be divided in this way.
    """
    main = sets["train"]
    val_fraction = 0.0 if "val" in sets else fractions.val_fraction
    test_fraction = 0.0 if "test" in sets else fractions.test_fraction
    given = main.source.given_splits()
    if given is not None and known is not None:
        raise ValueError(f"the {noun} come with their splits, so that data.splits has nothing to say: leave it out")
    comes_divided = given is not None and bool((given != "train").any())
    shared = bool(val_fraction or test_fraction or comes_divided or fold)
    others = [name for name in ("val", "test") if name in sets]
    if fold is not None and (comes_divided or others):
        raise ValueError(
            f"data.fold (--folds) divides all {noun}, but these come with splits of their own; leave it out, or the "
            "splits"
        )
    everything = [main, *(sets[name] for name in others)]
    firsts = copied_files(everything) if shared or others else None
    if firsts is None and shared and not others:
        # pixels depend on the range of their numbers, which is that of training images; here copies still count apart
        _use_range(sets, _by_fractions(main, None, val_fraction, test_fraction, split_seed, known, "", fold)["train"])
        pixels = copied_pixels(main)
        firsts = None if pixels is None else [pixels]
    first = None if firsts is None else firsts[0]
    if first is not None and (distinct := len(np.unique(first))) < _FEWEST_DISTINCT <= len(first):
        if is_rank_zero():
            few = f"only {distinct} of {len(first):,} {noun} are distinct"
            say(f"{few}: copies are in different splits, and figures on them mean little")
        first, firsts = None, None
    parts = _by_fractions(main, first, val_fraction, test_fraction, split_seed, known, noun, fold)
    if fold is not None and is_rank_zero():
        for remark in fold_remarks(main.labels.numpy(), parts, list(main.source.class_names), fold):
            say(remark)
    parts |= {name: np.arange(len(sets[name].source)) for name in others}
    survey = _use_range(sets, parts["train"])
    if firsts is not None:
        _tell_of_copies(main, firsts[0], parts, noun)
        _leave_out_copies(sets, others, firsts, parts, noun)
    return Division(sets, parts, fractions, shared, survey)


def _by_fractions(
    images: ImageSet,
    first: NDArray[np.int64] | None,
    val_fraction: float,
    test_fraction: float,
    seed: int,
    known: Assignment | None,
    noun: str,
    fold: Fold | None = None,
) -> Parts:
    """The places of each split: identical images, and those of a group, together; known ones where they were."""
    own = np.arange(len(images.source))
    first = own if first is None else first
    groups, given = images.source.split_groups(), images.source.given_splits()
    first = first if groups is None else joined(first, groups)
    if fold is not None:
        return split_by_fold(images.labels.numpy(), first, groups is not None, val_fraction, fold, seed)
    if known is not None:
        splits = _known_splits(images, known, noun)
        _follow_known(splits, first)
    elif given is not None:
        val_fraction, test_fraction = _not_given(given, val_fraction, test_fraction)
        held_out = np.isin(first, first[given != "train"])
        splits = np.where(held_out | (not val_fraction and not test_fraction), given, _NEW)
    else:
        splits = np.full(len(own), _NEW, dtype="<U5")
    by_group = groups is not None and known is None and bool(val_fraction or test_fraction)
    new = np.flatnonzero((splits == _NEW) & ((first == own) | by_group))
    labels = images.labels.numpy()[new]
    if by_group:
        drawn = split_by_group(labels, first[new], val_fraction, test_fraction, seed)
    elif len(new):
        drawn = _draw(labels, val_fraction, test_fraction, seed, strict=known is None)
    else:
        drawn = {}
    for name, places in drawn.items():
        splits[new[places]] = name
    splits = np.where(splits == _NEW, splits[first], splits)
    return {name: np.flatnonzero(splits == name) for name in get_args(Split)}


def _not_given(given: NDArray[np.str_], val_fraction: float, test_fraction: float) -> tuple[float, float]:
    """The fractions that are still to be drawn, of what is given for training."""
    return 0.0 if (given == "val").any() else val_fraction, 0.0 if (given == "test").any() else test_fraction


def _use_range(sets: dict[str, ImageSet], training: NDArray[np.int64]) -> Survey:
    """Has all images decoded with the range that some of those for training have."""
    survey = sets["train"].survey(training)
    for images in sets.values():
        images.source.use_ranges(survey.ranges)
    return survey


def divide_as_before(
    sets: dict[str, ImageSet], before: dict[str, Assignment], fractions: Fractions, limited: bool, noun: str
) -> Division:
    """The division with which a run was begun; images that are new since then are left out.

    Args:
        sets: All images as they are now.
        before: The assignments of the run's split file.
        fractions: How few of the training images are labelled.
        limited: Whether the run uses some images only, so that others are no news.
        noun: What to call the images.

    Raises:
        ValueError: In one line, if an image is gone or has changed.
    """
    if sets.keys() != before.keys():
        raise ValueError(f"the run was begun with {noun} for {', '.join(before)}, now there are {', '.join(sets)}")
    kept, parts = {}, {}
    for name, images in sets.items():
        places, num = kept_places(images.source, before[name], noun), len(images.source)
        is_whole = len(places) == num and (places == np.arange(num)).all()
        kept[name] = images if is_whole else images.subset(places)
        if len(places) < num and not limited and is_rank_zero():
            say(
                f"new since the run was begun, and left out: {counted(num - len(places), noun)}; it goes on with its "
                f"{len(places):,} (a new run with --data.splits RUN keeps their splits and takes the new ones)"
            )
        splits = before[name].splits
        own = [name] if name != "train" else [each for each in get_args(Split) if each not in sets or each == "train"]
        parts |= {each: np.flatnonzero(splits == each) for each in own}
    survey = _use_range(kept, parts["train"])
    for name, images in kept.items():
        check_pixels(images, before[name], noun)
    shared = any(len(parts[name]) for name in ("val", "test") if name not in sets)
    return Division(kept, parts, fractions, shared, survey)


def _draw(labels: NDArray[np.int64], val_fraction: float, test_fraction: float, seed: int, strict: bool) -> Parts:
    """As `split_indices`; of a few new images (not ``strict``) none may be for validation or testing."""
    if strict:
        return split_indices(labels, val_fraction, test_fraction, seed)
    num_test, num_val = round(len(labels) * test_fraction), round(len(labels) * val_fraction)
    if not num_test + num_val or num_test + num_val >= len(labels):
        return {"train": np.arange(len(labels))}
    return split_indices(labels, val_fraction if num_val else 0.0, test_fraction if num_test else 0.0, seed)


def _known_splits(images: ImageSet, known: Assignment, noun: str) -> NDArray[np.str_]:
    """The known split of each image by its name; a question mark for a new one."""
    split_of = dict(zip(known.names, known.splits.tolist(), strict=True))
    if not split_of:
        raise ValueError(f"data.splits: the file holds no names, because the run had {known.num:,} {noun}")
    num = len(images.source)
    splits = np.array([split_of.get(images.source.name(place), _NEW) for place in range(num)], dtype="<U5")
    if noun and is_rank_zero():
        new = int((splits == _NEW).sum())
        say(
            f"data.splits: {num - new:,} of {num:,} {noun} keep their splits; new: {new:,}; no longer there: "
            f"{len(split_of) - (num - new):,}"
        )
    return splits


def _follow_known(splits: NDArray[np.str_], first: NDArray[np.int64]) -> None:
    """Gives new copies of known images their split: the test split's before the validation and the training split's."""
    for name in reversed(get_args(Split)):
        groups = np.zeros(len(splits), dtype=bool)
        groups[first[splits == name]] = True
        splits[(splits == _NEW) & groups[first]] = name


def _tell_of_copies(images: ImageSet, first: NDArray[np.int64], parts: Parts, noun: str) -> None:
    splits = np.zeros(len(first), dtype=np.int64)
    for number, name in enumerate(get_args(Split)):
        if len(parts[name]) and parts[name][-1] < len(first):
            splits[parts[name]] = number
    copies = images.without_bad(np.flatnonzero(first != np.arange(len(first))))
    if not len(copies) or not is_rank_zero():
        return
    example = f"{images.source.name(int(copies[0]))} of {images.source.name(int(first[copies[0]]))}"
    mixed = int((splits[copies] != splits[first[copies]]).sum())
    where = f"in another split than that: {mixed:,}" if mixed else "each in the split of that"
    say(f"identical to an earlier one: {len(copies):,} of {len(first):,} {noun} ({example}); {where}")


def _leave_out_copies(
    sets: dict[str, ImageSet], others: list[str], firsts: list[NDArray[np.int64]], parts: Parts, noun: str
) -> None:
    """Takes out of training what is also for validation or testing in its own set, and out of validation likewise."""
    keys = dict(zip(["train", *others], firsts, strict=True))
    for held_out in reversed(others):
        group = keys[held_out][parts[held_out]]
        for name in ["train", *others[: others.index(held_out)]]:
            shared = np.isin(keys[name][parts[name]], group)
            if not shared.any():
                continue
            if is_rank_zero():
                example = sets[name].source.name(int(parts[name][shared][0]))
                where = "training" if name == "train" else "validation"
                same = counted(int(shared.sum()), noun)
                say(f"left out of {where}, since the {held_out} split has the same: {same} ({example})")
            parts[name] = parts[name][~shared]
