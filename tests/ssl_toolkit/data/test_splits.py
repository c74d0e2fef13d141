from __future__ import annotations

import numpy as np
import pytest
from sklearn.model_selection import StratifiedShuffleSplit

from ssl_toolkit.data.splits import few_labels, split_indices, stratified_order

LABELS = np.repeat([0, 1, 2, 3], [500, 300, 150, 7])


@pytest.mark.parametrize("labels", [LABELS, np.full(957, -1), np.arange(957) % 3])
def test_splits_are_disjoint_complete_and_stratified(labels):
    parts = split_indices(labels, 0.1, 0.2, seed=3)
    assert [len(parts[name]) for name in ("train", "val", "test")] == [670, 96, 191]
    assert sorted(np.concatenate(list(parts.values()))) == list(range(957))
    for name, share in (("val", 96 / 957), ("test", 191 / 957)):
        for label in np.unique(labels):
            expected = (labels == label).sum() * share
            assert abs((labels[parts[name]] == label).sum() - expected) < 1.5
    assert all((np.diff(part) > 0).all() for part in parts.values())


def test_class_counts_agree_with_scikit_learn():
    _, chosen = next(StratifiedShuffleSplit(1, test_size=191, random_state=0).split(LABELS, LABELS))
    ours = np.bincount(LABELS[split_indices(LABELS, 0.0, 0.2, seed=0)["test"]], minlength=4)
    assert np.abs(ours - np.bincount(LABELS[chosen], minlength=4)).max() <= 1


def test_validation_never_moves_the_test_split():
    tests = [split_indices(LABELS, fraction, 0.2, seed=1)["test"].tolist() for fraction in (0.0, 0.05, 0.1, 0.5)]
    assert all(test == tests[0] for test in tests)
    small, large = (set(split_indices(LABELS, 0.0, share, seed=1)["test"]) for share in (0.1, 0.3))
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
    with pytest.raises(ValueError, match=r"2 images are too few: 1 for validation .* leave none for training"):
        split_indices(np.full(2, -1), 0.1, 0.1, 0)
    assert split_indices(np.zeros(1, dtype=np.int64), 0.0, 0.0, 0)["train"].tolist() == [0]


def test_every_leading_part_is_balanced():
    order = stratified_order(np.arange(1000) % 10, seed=0, purpose="x")
    assert sorted(order) == list(range(1000))
    for length in range(10, 1000, 10):
        assert (np.bincount(order[:length] % 10, minlength=10) == length // 10).all()


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
