"""Classes one by one against scikit-learn and hand values."""

import json

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix

from ssl_toolkit.evaluation import by_class, calibration_error, confidence_interval

NAMES = ["cat", "dog", "owl", "emu"]


def test_the_matrix_is_that_of_scikit_learn():
    generator = torch.Generator().manual_seed(0)
    labels, predicted = (torch.randint(0, 3, (80,), generator=generator) for _ in range(2))
    found = by_class(labels, predicted, NAMES, "layer3")
    assert np.array_equal(found.matrix().numpy(), confusion_matrix(labels, predicted, labels=range(4)))
    for label, row in enumerate(found.rows[:3]):
        assert row.top1 == confidence_interval(predicted[labels == label] == label)
        assert row.num == int((labels == label).sum())
    assert found.rows[3] == type(found.rows[3])("emu", 0, None)
    assert json.loads(json.dumps(found.confusion)) == [list(each) for each in found.confusion]


def test_the_worst_and_the_most_frequent_are_named():
    labels = torch.tensor([0] * 4 + [1] * 4 + [2] * 2)
    predicted = torch.tensor([0, 1, 1, 2, 1, 1, 1, 0, 2, 2])
    worst, confused = by_class(labels, predicted, NAMES, "pooled").words()
    assert worst.startswith("worst classes, linear probe of pooled: cat 25.0 % (4.6-69.9, 4 images), dog 75.0 %")
    assert "owl" not in worst, "all of them are right"
    assert confused == (
        "most often taken one for another: cat for dog (2 of 4), dog for cat (1 of 4), cat for owl (1 of 4)"
    )
    assert by_class(labels, labels, NAMES, "pooled").words() == []


def test_no_more_than_five_are_named():
    labels = torch.arange(8)
    lines = by_class(labels, (labels + 1) % 8, [f"c{number}" for number in range(8)], "pooled").words()
    assert [line.count("(") for line in lines] == [5, 5]


def test_calibration_error_is_the_sum_over_bins():
    confidence = torch.tensor([0.05, 0.31, 0.33, 0.95, 1.0, 0.2])
    correct = torch.tensor([True, False, True, True, False, True])
    # bins of 1/15: 0.05 alone, 0.31 and 0.33 in (4/15, 5/15], 0.95 and 1.0 in (14/15, 1], 0.2 ends bin 3
    expected = (0.95 + abs(1 - 0.64) + abs(1 - 1.95) + 0.8) / 6
    assert calibration_error(confidence, correct) == pytest.approx(expected)
    assert calibration_error(torch.ones(4), torch.ones(4, dtype=torch.bool)) == 0
    assert calibration_error(torch.ones(4), torch.zeros(4, dtype=torch.bool)) == 1
    assert calibration_error(torch.zeros(2), torch.zeros(2, dtype=torch.bool)) == 0


def test_many_that_are_right_as_often_as_they_are_sure_are_calibrated():
    generator = torch.Generator().manual_seed(0)
    confidence = torch.rand(100_000, generator=generator)
    correct = torch.rand(100_000, generator=generator) < confidence
    assert calibration_error(confidence, correct) < 0.01
    assert calibration_error((confidence + 0.2).clamp(max=1), correct) == pytest.approx(0.18, abs=0.01)
