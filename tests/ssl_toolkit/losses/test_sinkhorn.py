"""Sinkhorn-Knopp and the loss of soft assignments against naive loops, laws and hand values."""

import math

import pytest
import torch

from ssl_toolkit.losses import entropy, sinkhorn, soft_assignment_loss


def naive(scores, epsilon, iterations):
    """Columns, then rows, in turns, one number at a time."""
    table = [[math.exp(each / epsilon) for each in row] for row in scores.tolist()]
    for _ in range(iterations):
        sums = [sum(row[k] for row in table) for k in range(len(table[0]))]
        table = [[each / total for each, total in zip(row, sums, strict=True)] for row in table]
        table = [[each / sum(row) for each in row] for row in table]
    return torch.tensor(table, dtype=torch.float64)


@pytest.mark.parametrize("iterations", [1, 3])
@pytest.mark.parametrize("epsilon", [0.05, 0.5])
def test_equals_the_naive_loop(epsilon, iterations):
    scores = torch.rand(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    torch.testing.assert_close(sinkhorn(scores, epsilon, iterations), naive(scores, epsilon, iterations))


def test_after_many_iterations_all_prototypes_are_used_equally():
    scores = torch.rand(12, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assigned = sinkhorn(scores, 0.1, iterations=300)
    torch.testing.assert_close(assigned.sum(dim=1), torch.ones(12, dtype=torch.float64))
    torch.testing.assert_close(assigned.sum(dim=0), torch.full((4,), 3.0, dtype=torch.float64), rtol=1e-6, atol=0)


@pytest.mark.parametrize("epsilon", [0.02, 0.005, 0.001])
def test_small_epsilons_leave_no_sample_without_a_prototype(epsilon):
    """A few samples are near a prototype, the others far from all: their exponentials underflow in float32."""
    generator = torch.Generator().manual_seed(0)
    scores = 0.1 * torch.randn(64, 20, generator=generator)
    scores[:16, 0] = 0.99
    assigned = sinkhorn(scores, epsilon)
    torch.testing.assert_close(assigned.sum(dim=1), torch.ones(64))
    exact = sinkhorn(scores.double(), epsilon)
    torch.testing.assert_close(assigned.double(), exact, rtol=1e-3, atol=1e-4)


def test_a_prototype_that_all_prefer_is_shared():
    """With the softmax alone all would be in the first."""
    scores = torch.tensor([[0.9, 0.8], [0.9, 0.1]], dtype=torch.float64)
    assert sinkhorn(scores, 0.05, iterations=50).argmax(dim=1).tolist() == [1, 0]


def test_further_samples_take_part():
    scores = torch.rand(9, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(sinkhorn(scores[:5], 0.1, more=scores[5:]), sinkhorn(scores, 0.1)[:5])


@pytest.mark.parametrize("epsilon", [0.1, 0.005])
def test_further_samples_do_not_count_unless_it_is_said(epsilon):
    scores = 2 * torch.rand(9, 4, generator=torch.Generator().manual_seed(1)) - 1
    scores[5:, 0] = 1.0  # much larger than the others', so that these would vanish beside it
    scores[:5, 0] = -1.0
    yes, no = torch.tensor(True), torch.tensor(False)
    with_them = sinkhorn(scores[:5], epsilon, more=scores[5:])
    assert torch.equal(sinkhorn(scores[:5], epsilon, more=scores[5:], more_counts=yes), with_them)
    without = sinkhorn(scores[:5], epsilon, more=scores[5:], more_counts=no)
    torch.testing.assert_close(without, sinkhorn(scores[:5], epsilon))
    assert (without - with_them).abs().max() > 0.01
    assert not torch.allclose(sinkhorn(scores[:5], 0.1), sinkhorn(scores, 0.1)[:5], rtol=1e-3)


def test_large_scores_do_not_overflow_and_have_no_gradient():
    scores = torch.tensor([[1000.0, -1000.0], [999.0, 0.0]], requires_grad=True)
    assigned = sinkhorn(scores, 0.05)
    assert assigned.isfinite().all()
    assert not assigned.requires_grad


def test_the_loss_is_the_cross_entropy_one_number_at_a_time():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 3, dtype=torch.float64, generator=generator, requires_grad=True)
    targets = torch.rand(5, 3, dtype=torch.float64, generator=generator).softmax(dim=1).requires_grad_()
    loss = soft_assignment_loss(logits, targets)
    expected = 0.0
    for row, aims in zip(logits.tolist(), targets.tolist(), strict=True):
        total = sum(math.exp(each) for each in row)
        expected -= sum(aim * math.log(math.exp(each) / total) for aim, each in zip(aims, row, strict=True)) / 5
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    loss.backward()
    torch.testing.assert_close(logits.grad, (logits.softmax(dim=1) - targets).detach() / 5)
    assert targets.grad is None


def test_entropy_from_certain_to_even():
    assert entropy(torch.tensor([[1.0, 0, 0, 0]])).item() == 0
    assert entropy(torch.full((3, 4), 0.25)).item() == pytest.approx(math.log(4))
