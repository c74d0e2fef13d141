"""Multi-label losses against naive loops; what is unknown adds nothing, and parts of a batch average to the whole."""

import math

import pytest
import torch
import torch.nn.functional as F

from ssl_toolkit.losses import asymmetric_loss, binary_cross_entropy

BOTH = pytest.mark.parametrize("loss", [binary_cross_entropy, asymmetric_loss])


def some(num=12, labels=5, unknown=0.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(num, labels, generator=generator, dtype=torch.float64)
    targets = torch.randint(2, (num, labels), generator=generator).float()
    targets[torch.rand(num, labels, generator=generator) < unknown] = math.nan
    return logits, targets


def naive_asymmetric(logits, targets, negative_focus, positive_focus, margin):
    total = 0.0
    for scores, wanted in zip(logits.tolist(), targets.tolist(), strict=True):
        for score, target in zip(scores, wanted, strict=True):
            p = 1 / (1 + math.exp(-score))
            if target == 1:
                total -= (1 - p) ** positive_focus * math.log(p)
            elif target == 0:
                shifted = max(p - margin, 0)
                total -= shifted**negative_focus * math.log(1 - shifted)
    return total / logits.numel()


def test_cross_entropy_is_torch_s_where_all_is_known():
    logits, targets = some()
    expected = F.binary_cross_entropy_with_logits(logits, targets.double())
    assert binary_cross_entropy(logits, targets) == pytest.approx(float(expected), rel=1e-12)


@pytest.mark.parametrize("arguments", [(4.0, 0.0, 0.05), (2.0, 1.0, 0.0), (0.0, 0.0, 0.0)])
def test_asymmetric_loss_is_that_of_a_loop(arguments):
    logits, targets = some(unknown=0.3)
    expected = naive_asymmetric(logits, targets, *arguments)
    assert asymmetric_loss(logits, targets, *arguments) == pytest.approx(expected, rel=1e-6)


def test_without_focus_and_margin_it_is_cross_entropy():
    logits, targets = some(unknown=0.3)
    expected = binary_cross_entropy(logits, targets)
    assert asymmetric_loss(logits, targets, 0.0, 0.0, 0.0) == pytest.approx(float(expected), rel=1e-6)


@BOTH
def test_what_is_unknown_has_no_gradient(loss):
    logits, targets = some(unknown=0.5)
    logits.requires_grad_(True)
    loss(logits, targets).backward()
    assert (logits.grad[targets.isnan()] == 0).all()
    assert (logits.grad[targets == 1] != 0).all()


@BOTH
def test_halves_of_a_batch_average_to_the_whole(loss):
    logits, targets = some(unknown=0.4)
    halves = [loss(part, wanted) for part, wanted in zip(logits.split(6), targets.split(6), strict=True)]
    assert sum(halves) / 2 == pytest.approx(float(loss(logits, targets)), rel=1e-9)


@BOTH
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sure_and_wrong_scores_stay_finite(loss, dtype):
    logits = torch.tensor([[80.0, -80.0, 80.0, -80.0]], dtype=dtype, requires_grad=True)
    found = loss(logits, torch.tensor([[1.0, 0.0, 0.0, 1.0]]))
    found.backward()
    assert found.dtype == torch.float32
    assert torch.isfinite(found)
    assert logits.grad.isfinite().all()
