"""Segments of labelled frames: hand values, a naive count and laws."""

import math

import numpy as np
import pytest
import torch

from ssl_toolkit.evaluation.intervals import clustered_interval, wilson_interval
from ssl_toolkit.evaluation.segments import (
    OVERLAPS,
    LabelledSequences,
    Segment,
    edit_score,
    figures,
    matches,
    segments,
)


def of(text, known=None):
    labels = np.array([ord(each) for each in text])
    return segments(labels, np.ones(len(labels), dtype=bool) if known is None else np.array(known))


def test_segments_by_hand():
    assert of("aabccc") == [Segment(97, 0, 2), Segment(98, 2, 3), Segment(99, 3, 6)]
    # what is not known interrupts a segment, and belongs to none
    assert of("aaaab", [True, False, True, True, False]) == [Segment(97, 0, 1), Segment(97, 2, 4)]
    assert of("aa", [False, False]) == []
    labels = np.array([0, 0, 1, 0])
    assert segments(labels, np.ones(4, dtype=bool), background=0) == [Segment(1, 2, 3)]


def test_matches_by_hand():
    true = of("aaaabbbb")
    assert matches(of("aaaabbbb"), true, 0.5) == (2, 0, 0)
    # half of the first: an intersection over union of exactly a half
    assert matches(of("aaccbbbb"), true, 0.5) == (2, 1, 0)
    assert matches(of("acccbbbb"), true, 0.5) == (1, 2, 1)
    # two that match one: the second is wrong
    assert matches(of("aacabbbb"), true, 0.1) == (2, 2, 0)
    assert matches(of("bbbbaaaa"), true, 0.1) == (0, 2, 2)
    assert matches([], true, 0.1) == (0, 0, 2)


def test_edit_score_by_hand():
    assert edit_score(of("aabbcc"), of("abbbbc")) == 1.0
    assert edit_score(of("aabb"), of("aabbcc")) == pytest.approx(2 / 3)
    assert edit_score(of("ababab"), of("ab")) == pytest.approx(1 / 3)
    assert edit_score([], []) == 1.0
    assert edit_score([], of("ab")) == 0.0


def test_edit_score_against_the_recursive_definition():
    random = np.random.default_rng(0)

    def distance(one, other):
        if not one or not other:
            return len(one) + len(other)
        return min(
            distance(one[1:], other) + 1, distance(one, other[1:]) + 1,
            distance(one[1:], other[1:]) + (one[0] != other[0]),
        )  # fmt: skip

    for _ in range(60):
        one, other = (of("".join(random.choice(list("abc"), random.integers(1, 7)))) for _ in range(2))
        labels = [[each.label for each in side] for side in (one, other)]
        expected = 1 - distance(*labels) / max(map(len, labels))
        assert edit_score(one, other) == pytest.approx(expected)
        assert edit_score(other, one) == pytest.approx(expected)


def test_matches_against_a_naive_count_of_frames():
    random = np.random.default_rng(1)
    for _ in range(60):
        num = random.integers(1, 30)
        one, other = ("".join(random.choice(list("abc"), num, p=[0.6, 0.2, 0.2])) for _ in range(2))
        for overlap in OVERLAPS:
            right, free = 0, of(other)
            for label, start, end in of(one):
                frames = set(range(start, end))
                ratios = [
                    len(frames & set(range(each.start, each.end))) / len(frames | set(range(each.start, each.end)))
                    * (each.label == label) for each in of(other)
                ]  # fmt: skip
                best = of(other)[int(np.argmax(ratios))]
                if max(ratios) >= overlap and best in free:
                    free.remove(best)
                    right += 1
            assert matches(of(one), of(other), overlap) == (right, len(of(one)) - right, len(free))


def counted(pairs, order=None):
    seen = LabelledSequences()
    for index, (found, truth) in enumerate(pairs):
        seen.add(index, torch.tensor(found), torch.tensor(truth))
    return seen.rows()


def test_figures_by_hand():
    rows = counted([([0, 0, 1, 1], [0, 0, 1, 1]), ([0, 1, 1, 1, 1, 1], [0, 0, 0, -1, 1, 2]), ([1], [-1])])
    found = figures(rows)
    assert len(rows) == 2  # one without a label does not count
    assert found["top1"] == pytest.approx((4 + 2) / (4 + 5))
    assert found["top1_low"] < found["top1"] < found["top1_high"]
    # of the second: a, b | b beside a | b c; the predicted b before the gap has nothing to match
    assert found["f1_10"] == pytest.approx(2 * (2 + 2) / (2 * (2 + 2) + 1 + 1))
    assert found["f1_50"] == pytest.approx(2 * (2 + 1) / (2 * 3 + 2 + 2))
    # a b b beside a b c
    assert found["edit"] == pytest.approx((1 + 2 / 3) / 2)
    assert figures(rows[:0]) == {}
    # the same in any order, to the bit
    assert figures(rows.flip(0)) == found


def test_all_right_is_one_and_all_wrong_is_zero():
    right = figures(counted([([0, 0, 1], [0, 0, 1])] * 5))
    wrong = figures(counted([([1, 1, 0], [0, 0, 1])] * 5))
    assert all(right[name] == 1 for name in ("top1", "f1_10", "f1_25", "f1_50", "edit"))
    assert wrong["top1"] == wrong["f1_10"] == 0
    # no more certain than five sequences are, though they have fifteen frames
    assert right["top1_low"] == wilson_interval(5, 5).low


def test_an_interval_of_clusters():
    ones = torch.ones(200)
    right = (torch.arange(200) % 4 != 0).long()
    # clusters of one sample are samples, but for one degree of freedom
    found, plain = clustered_interval(right, ones), wilson_interval(150, 200)
    assert found.value == plain.value
    assert found.low == pytest.approx(plain.low, abs=5e-4)
    # ten times each sample tells nothing new
    tenfold = clustered_interval(10 * right, 10 * ones)
    assert tenfold == pytest.approx(found)
    # clusters that are alike tell more than those that differ
    alike = clustered_interval(torch.tensor([74, 76] * 10), torch.full((20,), 100))
    unlike = clustered_interval(torch.tensor([50, 100] * 10), torch.full((20,), 100))
    assert alike.high - alike.low < unlike.high - unlike.low
    with pytest.raises(ValueError, match="at least one sample"):
        clustered_interval(ones[:0], ones[:0])


@pytest.mark.slow
def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    torch.manual_seed(0)
    held = 0
    for _ in range(400):
        truth = torch.distributions.Beta(6.0, 2.0).sample((40,))
        num = torch.randint(20, 60, (40,))
        right = torch.distributions.Binomial(num.float(), truth).sample()
        interval = clustered_interval(right, num)
        held += interval.low <= 0.75 <= interval.high
    assert math.isclose(held / 400, 0.95, abs_tol=0.04)
