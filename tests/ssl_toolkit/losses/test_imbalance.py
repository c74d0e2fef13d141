"""Class weights by hand, focal cross entropy against torch's and a loop, logit adjustment by the law that it is for."""

import math

import pytest
import torch
import torch.nn.functional as F

from ssl_toolkit.losses import class_weights, focal_cross_entropy, log_prior, soft_cross_entropy, soften
from ssl_toolkit.losses.soft_targets import Mixing

COUNTS = torch.tensor([100, 10, 1])


def some(num=40, classes=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(num, classes, generator=generator, dtype=torch.float64)
    return logits, torch.randint(classes, (num,), generator=generator)


@pytest.mark.parametrize("beta", [0.0, 0.9, 0.999, 1.0])
def test_weights_are_inverse_effective_numbers_of_mean_one(beta):
    effective = [n if beta == 1 else (1 - beta**n) / (1 - beta) for n in COUNTS.tolist()]
    weights = class_weights(COUNTS, beta).tolist()
    assert sum(w * n for w, n in zip(weights, COUNTS.tolist(), strict=True)) / 111 == pytest.approx(1, rel=1e-6)
    assert weights[1] / weights[0] == pytest.approx(effective[0] / effective[1], rel=1e-5)
    assert weights[2] / weights[0] == pytest.approx(effective[0] / effective[2], rel=1e-5)


def test_a_class_without_samples_has_no_weight():
    assert class_weights(torch.tensor([4, 0, 4]), 1.0).tolist() == [1, 0, 1]
    assert log_prior(torch.tensor([4, 0, 4])).isfinite().all()


def test_without_focus_it_is_torch_s_cross_entropy():
    logits, targets = some()
    assert focal_cross_entropy(logits, soften(targets)) == pytest.approx(float(F.cross_entropy(logits, targets)))
    weights = class_weights(COUNTS, 1.0)
    each = F.cross_entropy(logits, targets, reduction="none") * weights.double()[targets]
    assert focal_cross_entropy(logits, soften(targets), 0.0, weights) == pytest.approx(float(each.mean()))


def test_soft_targets_are_those_of_the_plain_loss():
    logits, targets = some()
    mixed = soften(targets, Mixing(torch.arange(40).roll(1), torch.linspace(0.5, 1, 40)), smoothing=0.1)
    expected = soft_cross_entropy(logits, mixed)
    assert focal_cross_entropy(logits, mixed) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("focus", [0.5, 2.0])
def test_the_focus_is_that_of_a_loop(focus):
    logits, targets = some()
    total = 0.0
    for scores, target in zip(logits.tolist(), targets.tolist(), strict=True):
        p = math.exp(scores[target]) / sum(math.exp(score) for score in scores)
        total -= (1 - p) ** focus * math.log(p)
    assert focal_cross_entropy(logits, soften(targets), focus) == pytest.approx(total / 40, rel=1e-6)


def test_a_sure_sample_has_a_finite_gradient():
    logits = torch.tensor([[60.0, -60.0]], requires_grad=True)
    focal_cross_entropy(logits, soften(torch.tensor([0])), 0.5).backward()
    assert logits.grad.isfinite().all()


def test_adjusted_scores_learn_what_equal_classes_would():
    """Features that tell nothing: with the adjustment the best scores are equal, without it those of the prior."""
    targets = torch.repeat_interleave(torch.arange(3), COUNTS)
    found = {}
    for factor in (0.0, 1.0):
        scores = torch.zeros(3, requires_grad=True)
        optimizer = torch.optim.LBFGS([scores], max_iter=200, line_search_fn="strong_wolfe")

        def closure(scores=scores, optimizer=optimizer, factor=factor):
            optimizer.zero_grad()
            adjusted = (scores + factor * log_prior(COUNTS)).expand(len(targets), 3)
            loss = focal_cross_entropy(adjusted, soften(targets))
            loss.backward()
            return loss

        optimizer.step(closure)
        found[factor] = scores.detach().softmax(dim=0)
    assert found[0.0].tolist() == pytest.approx([100 / 111, 10 / 111, 1 / 111], abs=1e-3)
    assert found[1.0].tolist() == pytest.approx([1 / 3] * 3, abs=1e-2)
