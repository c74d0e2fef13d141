"""Splits of 1,000 random tables of groups: no group on both sides, and class shares as even as groups allow."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from ssl_toolkit.data.group_splits import split_by_group

FRACTIONS = {"val": 0.15, "test": 0.25}


def random_table(seed):
    """Labels and groups of skewed sizes and classes; now and then one group has most of the images."""
    random = np.random.default_rng(seed)
    num_groups, num_classes = int(random.integers(3, 60)), int(random.integers(1, 9))
    sizes = np.ceil(random.pareto(1.2, num_groups) * 3).clip(1, 300).astype(int)
    if seed % 10 == 0:
        sizes[0] = sizes.sum() * 4
    shares = random.dirichlet(np.full(num_classes, 0.5))
    groups = np.repeat(random.permutation(num_groups) * 7, sizes)
    of_group = random.choice(num_classes, num_groups, p=shares)
    # a group's images are of its class, but for one in five
    labels = np.where(random.random(len(groups)) < 0.8, of_group[np.repeat(np.arange(num_groups), sizes)], 0)
    if seed % 7 == 0:
        labels[random.random(len(labels)) < 0.3] = -1
    order = random.permutation(len(groups))
    return labels[order].astype(np.int64), groups[order].astype(np.int64)


@pytest.mark.parametrize("hundred", range(10))
def test_a_thousand_tables(hundred):
    for seed in range(100 * hundred, 100 * hundred + 100):
        labels, groups = random_table(seed)
        parts = split_by_group(labels, groups, FRACTIONS["val"], FRACTIONS["test"], seed)
        assert sorted(np.concatenate(list(parts.values())).tolist()) == list(range(len(labels)))
        sides = {name: set(groups[places].tolist()) for name, places in parts.items()}
        assert all(sides.values())
        assert not sides["train"] & sides["val"]
        assert not (sides["train"] | sides["val"]) & sides["test"]
        sizes = Counter(groups.tolist())
        majority = {}
        for group in sizes:
            counts = Counter(labels[groups == group].tolist())
            majority[group] = min(counts, key=lambda label: (-counts[label], label))
        of_class = Counter(majority.values())
        # the test split, and what is held out in all, have the same share of the groups of every class, to half a group
        for held_out in (sides["test"], sides["test"] | sides["val"]):
            taken = Counter(majority[group] for group in held_out)
            lowest = max((taken[label] - 0.5) / num for label, num in of_class.items())
            highest = min((taken[label] + 0.5) / num for label, num in of_class.items())
            assert lowest <= highest + 1e-9
        # and it is off its fraction of the images by the largest group at most
        size = sum(sizes[group] for group in sides["test"])
        assert abs(size - FRACTIONS["test"] * len(labels)) <= max(sizes.values())
