"""Paired tests against all flips of signs, Holm's correction against hand values and its rule."""

import itertools
import math

import numpy as np
import pytest
import torch

from ssl_toolkit.evaluation.significance import holm, mcnemar_exact, paired_permutation_test


def over_all_signs(differences):
    sums = [abs(sum(np.array(signs) * differences)) for signs in itertools.product((-1, 1), repeat=len(differences))]
    return float(np.mean(np.array(sums) >= abs(sum(differences))))


@pytest.mark.parametrize(("better", "worse"), [(0, 0), (3, 3), (5, 1), (0, 8), (7, 3), (1, 0)])
def test_mcnemar_is_the_share_of_all_signs(better, worse):
    assert mcnemar_exact(better, worse) == pytest.approx(over_all_signs([1] * better + [-1] * worse))
    assert mcnemar_exact(better, worse) == mcnemar_exact(worse, better)


def test_mcnemar_by_hand_and_with_many_images():
    assert mcnemar_exact(9, 1) == pytest.approx(22 / 1024)
    # the normal approximation with continuity correction is close for many
    assert mcnemar_exact(5200, 4800) == pytest.approx(math.erfc(399 / 100 / math.sqrt(2)), rel=0.01)
    assert 0 < mcnemar_exact(300, 0) < 1e-80


@pytest.mark.parametrize("differences", [[3, 1, -2, 2, 0, 1, 4], [5, -1, -1, -2, 0], [2, 2, 2, 2, 2, 2, 2, 2]])
def test_the_permutation_test_is_the_share_of_all_signs(differences):
    found = paired_permutation_test(torch.tensor(differences), num_draws=200_000)
    assert found == pytest.approx(over_all_signs(differences), abs=0.005)
    assert found == paired_permutation_test(torch.tensor(differences), num_draws=200_000), "the seed decides"


def test_differences_of_one_are_mcnemars():
    differences = torch.tensor([1] * 9 + [0] * 20 + [-1])
    assert paired_permutation_test(differences) == mcnemar_exact(9, 1)
    assert paired_permutation_test(torch.zeros(5, dtype=torch.int64)) == 1


def test_equal_classifiers_are_told_apart_no_more_often_than_is_said():
    generator = torch.Generator().manual_seed(0)
    values = [
        paired_permutation_test(torch.randint(-2, 3, (50,), generator=generator), num_draws=2000) for _ in range(300)
    ]
    assert np.mean(np.array(values) <= 0.05) < 0.09
    assert 0.45 < np.mean(values) < 0.62, "uniform, but for sums that are equally far from 0"


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_holm_rejects_what_its_rule_does():
    generator = np.random.default_rng(0)
    for _ in range(50):
        p_values = list(generator.random(8) ** 4)
        expected, ordered = set(), sorted(range(8), key=lambda place: p_values[place])
        for rank, place in enumerate(ordered):
            if p_values[place] > 0.05 / (8 - rank):
                break
            expected.add(place)
        assert {place for place, p in enumerate(holm(p_values)) if p <= 0.05} == expected
