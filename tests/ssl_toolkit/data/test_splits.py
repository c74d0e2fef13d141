from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.model_selection import StratifiedShuffleSplit

from ssl_toolkit.data.splits import few_labels, split_indices, stratified_choice
from ssl_toolkit.random import fold_in, sample_keys, uniform

LABELS = np.repeat([0, 1, 2, 3], [500, 300, 150, 7])


@pytest.mark.parametrize("labels", [LABELS, np.full(957, -1), np.arange(957) % 3])
def test_splits_are_disjoint_complete_and_stratified(labels):
    parts = split_indices(labels, 0.1, 0.2, seed=3)
    assert [len(parts[name]) for name in ("train", "val", "test")] == [670, 96, 191]
    assert sorted(np.concatenate(list(parts.values()))) == list(range(957))
    for name, fraction in (("val", 96 / 957), ("test", 191 / 957)):
        for label in np.unique(labels):
            expected = (labels == label).sum() * fraction
            assert abs((labels[parts[name]] == label).sum() - expected) < 1.5
    assert all((np.diff(part) > 0).all() for part in parts.values())


def test_class_counts_agree_with_scikit_learn():
    _, chosen = next(StratifiedShuffleSplit(1, test_size=191, random_state=0).split(LABELS, LABELS))
    ours = np.bincount(LABELS[split_indices(LABELS, 0.0, 0.2, seed=0)["test"]], minlength=4)
    assert np.abs(ours - np.bincount(LABELS[chosen], minlength=4)).max() <= 1


def test_validation_never_moves_the_test_split():
    tests = [split_indices(LABELS, fraction, 0.2, seed=1)["test"].tolist() for fraction in (0.0, 0.05, 0.1, 0.5)]
    assert all(test == tests[0] for test in tests)
    small, large = (set(split_indices(LABELS, 0.0, fraction, seed=1)["test"]) for fraction in (0.1, 0.3))
    assert small < large


def test_seeds_give_other_splits():
    first, second = (split_indices(LABELS, 0.1, 0.0, seed)["val"] for seed in (0, 1))
    assert first.tolist() != second.tolist()
    assert first.tolist() == split_indices(LABELS, 0.1, 0.0, 0)["val"].tolist()


def test_few_images():
    assert {name: len(part) for name, part in split_indices(np.full(3, -1), 0.1, 0.1, 0).items()} == {
        "train": 1,
        "val": 1,
        "test": 1,
    }
    with pytest.raises(ValueError, match=r"2 images, too few: 1 for validation .* leave none for training"):
        split_indices(np.full(2, -1), 0.1, 0.1, 0)
    assert split_indices(np.zeros(1, dtype=np.int64), 0.0, 0.0, 0)["train"].tolist() == [0]


def test_every_leading_part_is_balanced():
    labels = np.arange(1000) % 10
    lengths = range(0, 1001, 10)
    parts = stratified_choice(labels, lengths, seed=0, purpose="x")
    for length, part, before in zip(lengths, parts, [parts[0], *parts], strict=False):
        assert (np.bincount(labels[part], minlength=10) == length // 10).all()
        assert part[before].all()  # a longer part holds every shorter one


def naive_order(labels, seed, purpose):
    """All images one by one: by their place within their class, ties by a second draw, then by number."""
    draws = uniform(fold_in(sample_keys(seed, 0, torch.arange(len(labels))), purpose), 2).tolist()
    scores = {}
    for label in set(labels.tolist()):
        members = sorted((draws[image][0], image) for image in np.flatnonzero(labels == label).tolist())
        for place, (_, image) in enumerate(members):
            scores[image] = (place + 0.5) / len(members)
    return sorted(range(len(labels)), key=lambda image: (scores[image], draws[image][1], image))


@pytest.mark.parametrize("labels", [LABELS, np.full(957, -1), np.arange(957) % 3, np.arange(957) % 479 - 1])
def test_a_choice_is_the_beginning_of_a_naive_order(labels, monkeypatch):
    monkeypatch.setattr("ssl_toolkit.data.splits._AT_ONCE", 100)  # drawn in parts, it is the same
    counts = [0, 1, 2, 10, 96, 478, 479, 956, 957]
    order = naive_order(labels, 5, "x")
    for count, part in zip(counts, stratified_choice(labels, counts, 5, "x"), strict=True):
        assert np.flatnonzero(part).tolist() == sorted(order[:count])


def test_few_labels():
    chosen = few_labels(LABELS, 0, fraction=0.1)
    assert np.bincount(LABELS[chosen]).tolist() == [50, 30, 15, 1]
    assert np.bincount(LABELS[few_labels(LABELS, 0, fraction=0.001)]).tolist() == [1, 1, 1, 1]
    assert np.bincount(LABELS[few_labels(LABELS, 0, per_class=20)]).tolist() == [20, 20, 20, 7]
    assert few_labels(LABELS, 0).tolist() == list(range(957))
    assert chosen.tolist() == few_labels(LABELS, 0, fraction=0.1).tolist()
    assert chosen.tolist() != few_labels(LABELS, 1, fraction=0.1).tolist()
    mixed = np.array([-1, 0, -1, 2, 0])
    assert set(few_labels(mixed, 0, fraction=1.0)) == {1, 3, 4}
    with pytest.raises(ValueError, match="needs images with labels"):
        few_labels(np.full(4, -1), 0, per_class=1)
