"""CORAL against a loop; its class probabilities are a distribution, whatever the scores."""

import math

import pytest
import torch

from ssl_toolkit.losses import coral, coral_probabilities


def some(num=20, levels=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(num, levels, generator=generator, dtype=torch.float64)
    return logits, torch.randint(levels + 1, (num,), generator=generator)


def test_it_is_the_mean_of_yes_or_no_questions():
    logits, targets = some()
    total = 0.0
    for scores, target in zip(logits.tolist(), targets.tolist(), strict=True):
        for level, score in enumerate(scores):
            p = 1 / (1 + math.exp(-score))
            total -= math.log(p if target > level else 1 - p)
    assert coral(logits, targets) == pytest.approx(total / logits.numel(), rel=1e-12)


def test_probabilities_are_a_distribution():
    logits, _ = some(num=200)  # not in order, as scores of a real head are
    found = coral_probabilities(logits)
    assert found.shape == (200, 5)
    assert (found >= 0).all()
    torch.testing.assert_close(found.sum(dim=1), torch.ones(200, dtype=torch.float64))


def test_probabilities_are_differences_of_those_of_being_above():
    found = coral_probabilities(torch.tensor([[2.0, 0.0, -1.0]]))
    above = [1 / (1 + math.exp(-score)) for score in (2.0, 0.0, -1.0)]
    expected = [1 - above[0], above[0] - above[1], above[1] - above[2], above[2]]
    assert found[0].tolist() == pytest.approx(expected, rel=1e-6)


def test_a_wrong_class_far_away_costs_more_than_a_near_one():
    logits = torch.tensor([[5.0, 5.0, 5.0, -5.0]])
    losses = [float(coral(logits, torch.tensor([target]))) for target in range(5)]
    assert losses[3] == min(losses)
    assert losses[0] > losses[1] > losses[2] > losses[3] < losses[4]
