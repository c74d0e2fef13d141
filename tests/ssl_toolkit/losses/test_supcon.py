"""SupCon against a naive loop, and against NT-Xent, which it is without labels."""

import math

import pytest
import torch

from ssl_toolkit.losses import contrast, nt_xent, supcon


def naive(first, second, labels, temperature):
    """Equation 2 of the paper, one anchor, one partner and one exponential at a time."""
    embeddings = [v / v.norm() for v in [*first, *second]]
    num, losses, hits = len(first), [], 0
    for i, anchor in enumerate(embeddings):
        similar = {k: anchor @ other / temperature for k, other in enumerate(embeddings) if k != i}
        own = int(labels[i % num])
        partners = [k for k in similar if k % num == i % num or (own >= 0 and int(labels[k % num]) == own)]
        total = sum(math.exp(float(each)) for each in similar.values())
        losses.append(-sum(float(similar[k]) - math.log(total) for k in partners) / len(partners))
        hits += max(similar, key=lambda k: float(similar[k])) in partners
    return sum(losses) / len(losses), hits / len(losses)


def views(num, width):
    return torch.randn(2, num, width, dtype=torch.float64, generator=torch.Generator().manual_seed(num))


@pytest.mark.parametrize("labels", [[0, 1, 0, 2, 0, 1], [4, 4, 4, 4, 4, 4], [0, -1, 0, -1, -1, 1]])
@pytest.mark.parametrize("temperature", [0.5, 0.1])
def test_equals_the_naive_loop(labels, temperature):
    loss, top1 = supcon(*views(6, 4), torch.tensor(labels), temperature)
    expected_loss, expected_top1 = naive(*views(6, 4), labels, temperature)
    assert loss.item() == pytest.approx(expected_loss, rel=1e-10)
    assert top1.item() == pytest.approx(expected_top1)


def test_its_gradient_is_that_of_the_naive_loop():
    labels, given, step = torch.tensor([0, 1, 0, -1]), views(4, 3), 1e-6
    leaf = given.clone().requires_grad_()
    supcon(*leaf, labels, 0.3)[0].backward()
    for place in range(0, given.numel(), 5):
        moved = [given.clone(), given.clone()]
        for each, sign in zip(moved, (1, -1), strict=True):
            each.view(-1)[place] += sign * step
        high, low = (naive(*each, labels, 0.3)[0] for each in moved)
        assert leaf.grad.view(-1)[place].item() == pytest.approx((high - low) / (2 * step), rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("labels", [[-1] * 7, list(range(7))])
def test_where_no_two_images_share_a_label_it_is_nt_xent(labels):
    found = supcon(*views(7, 5), torch.tensor(labels), 0.2)
    torch.testing.assert_close(found, nt_xent(*views(7, 5), 0.2))


def test_images_of_a_class_are_drawn_together():
    """One step along the gradient, without the other views' help: they coincide from the start."""
    one = views(4, 6)[0]
    labels = torch.tensor([0, 0, 1, 1])

    def cosines(x):
        unit = torch.nn.functional.normalize(x, dim=1)
        return unit @ unit.T

    leaf = one.clone().requires_grad_()
    supcon(leaf, leaf, labels, 0.5)[0].backward()
    moved = cosines(one - 0.01 * leaf.grad) - cosines(one)
    assert min(moved[0, 1], moved[2, 3]) > 0
    assert moved[:2, 2:].mean() < 0


def test_a_few_rows_at_a_time_are_the_same(monkeypatch):
    labels = torch.tensor([0, 1, 0, 2, 0, 1])
    whole = supcon(*views(6, 4), labels, 0.2)
    monkeypatch.setattr(contrast, "_MAX_SIMILARITIES", 24)
    leaf = views(6, 4).requires_grad_()
    parts = supcon(*leaf, labels, 0.2)
    torch.testing.assert_close(parts, whole)
    parts[0].backward()
    assert leaf.grad.isfinite().all()
