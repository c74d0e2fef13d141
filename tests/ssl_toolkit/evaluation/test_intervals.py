"""Intervals against hand values, a brute-force bootstrap, and their guarantee to cover the truth in 95 % of cases."""

import numpy as np
import pytest
import torch

from ssl_toolkit.evaluation import confidence_interval, mean_and_spread, paired_difference


def outcomes(num_right, num):
    return torch.arange(num) < num_right


def test_wilson_against_published_values():
    # Newcombe 1998, Statistics in Medicine 17, table I, method 3
    for right, num, low, high in [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ]:
        interval = confidence_interval(outcomes(right, num))
        assert interval.value == pytest.approx(right / num)
        assert (interval.low, interval.high) == pytest.approx((low, high), abs=6e-5)


def test_wilson_stays_within_0_and_1_and_holds_the_estimate():
    for num in (1, 2, 3, 10_000):
        for right in (0, num):
            interval = confidence_interval(outcomes(right, num))
            assert 0.0 <= interval.low <= interval.value <= interval.high <= 1.0
            assert interval.low < interval.high


def test_wilson_covers():
    generator = torch.Generator().manual_seed(0)
    intervals = [confidence_interval(torch.rand(50, generator=generator) < 0.9) for _ in range(1000)]
    assert 0.92 < np.mean([interval.low <= 0.9 <= interval.high for interval in intervals]) < 0.98


def test_paired_difference_against_drawing_images_one_by_one():
    generator = torch.Generator().manual_seed(0)
    num = 2000
    better = torch.rand(num, generator=generator) < 0.8
    worse = torch.where(torch.rand(num, generator=generator) < 0.7, better, torch.rand(num, generator=generator) < 0.5)
    interval = paired_difference(better, worse)
    difference = better.double().numpy() - worse.double().numpy()
    draws = np.random.default_rng(1).integers(num, size=(4000, num))
    low, high = np.quantile(difference[draws].mean(axis=1), [0.025, 0.975])
    assert interval.value == pytest.approx(difference.mean())
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=0.003)


def test_pairing_narrows_the_interval():
    generator = torch.Generator().manual_seed(0)
    baseline = torch.rand(1000, generator=generator) < 0.5
    correct = baseline | (torch.rand(1000, generator=generator) < 0.05)
    paired, unpaired = paired_difference(correct, baseline), paired_difference(correct, baseline[torch.randperm(1000)])
    assert paired.low > 0 > unpaired.low


def test_paired_difference_is_antisymmetric_seeded_and_modest_on_few_images():
    a, b = outcomes(70, 100), outcomes(60, 100)
    there, back = paired_difference(a, b, seed=1), paired_difference(b, a, seed=1)
    assert there.value == -back.value == pytest.approx(0.1)
    assert (there.low, there.high) == pytest.approx((-back.high, -back.low), abs=0.02)
    assert there == paired_difference(a, b, seed=1)
    three = paired_difference(outcomes(3, 3), outcomes(0, 3))
    assert three.value == 1.0
    assert three.low < 0, "three images prove nothing"
    same = paired_difference(a, a)
    assert same.low < same.value == 0.0 < same.high


def test_paired_difference_covers():
    generator = torch.Generator().manual_seed(0)
    covered = []
    for _ in range(400):
        draw = torch.rand(200, generator=generator)
        # 15 % only here, 5 % only in the baseline: the truth is 0.1
        interval = paired_difference((draw < 0.15) | (draw > 0.5), (draw > 0.45), num_draws=1000)
        covered.append(interval.low <= 0.1 <= interval.high)
    assert 0.91 < np.mean(covered) < 0.99


def test_mean_and_spread():
    spread = mean_and_spread([0.1, 0.2, 0.6])
    assert (spread.mean, spread.std, spread.num) == (pytest.approx(0.3), pytest.approx(np.sqrt(0.07)), 3)
    assert mean_and_spread([0.5]) == (0.5, 0.0, 1)


def test_errors():
    with pytest.raises(ValueError, match="at least one image"):
        confidence_interval(outcomes(0, 0))
    with pytest.raises(ValueError, match="the same images twice, got 3 and 4"):
        paired_difference(outcomes(1, 3), outcomes(1, 4))
    with pytest.raises(ValueError, match="at least one value"):
        mean_and_spread([])
