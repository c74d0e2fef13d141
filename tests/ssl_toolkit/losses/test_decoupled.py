"""DCL and DCLW against a naive loop, and against what distinguishes them from NT-Xent."""

import math

import pytest
import torch

from ssl_toolkit.losses import contrast, dcl, nt_xent


def naive(first, second, temperature, sigma):
    """Equations 5 and 6 of the paper, one exponential at a time."""
    embeddings = [v / v.norm() for v in [*first, *second]]
    num, losses = len(first), []
    near = [math.exp(float(embeddings[i] @ embeddings[i + num]) / sigma) for i in range(num)] if sigma else None
    for i, anchor in enumerate(embeddings):
        partner = (i + num) % (2 * num)
        weight = 2 - near[i % num] / (sum(near) / num) if sigma else 1
        others = sum(
            math.exp(float(anchor @ embeddings[k]) / temperature) for k in range(2 * num) if k % num != i % num
        )
        losses.append(math.log(others) - weight * float(anchor @ embeddings[partner]) / temperature)
    return sum(losses) / len(losses)


@pytest.mark.parametrize("sigma", [None, 0.5])
@pytest.mark.parametrize(("num", "width", "temperature"), [(2, 3, 0.5), (7, 16, 0.1)])
def test_equals_the_naive_loop(num, width, temperature, sigma):
    views = torch.randn(2, num, width, dtype=torch.float64, generator=torch.Generator().manual_seed(num))
    loss = dcl(*views, temperature, sigma)[0]
    assert loss.item() == pytest.approx(naive(*views, temperature, sigma), rel=1e-10)


def gradient(function, x, step=1e-6):
    """By central differences, one number at a time."""
    found = torch.zeros_like(x)
    for place in range(x.numel()):
        for sign in (1, -1):
            moved = x.clone()
            moved.view(-1)[place] += sign * step
            found.view(-1)[place] += sign * function(moved) / (2 * step)
    return found


@pytest.mark.parametrize("sigma", [None, 0.5])
def test_its_gradient_is_that_of_the_naive_loop(sigma):
    views = torch.randn(2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    dcl(*views, 0.3, sigma)[0].backward()
    expected = gradient(lambda moved: naive(*moved, 0.3, sigma), views.detach())
    torch.testing.assert_close(views.grad, expected, rtol=1e-6, atol=1e-8)


def test_it_pulls_as_much_where_the_partner_is_already_the_nearest():
    """NT-Xent's pull towards the partner falls with its probability; the decoupled one stays (section 3)."""
    first = torch.eye(4, dtype=torch.float64)
    second = first + 0.3 * first.roll(1, dims=1)
    pulls = {}
    for loss in (nt_xent, dcl):
        leaf = second.clone().requires_grad_()
        loss(first, leaf, 0.1)[0].backward()
        pulls[loss] = leaf.grad.norm()
    assert pulls[dcl] > 100 * pulls[nt_xent]


@pytest.mark.parametrize("sigma", [None, 0.5])
def test_of_a_single_image_nothing_is_lost(sigma):
    first, second = torch.randn(2, 1, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    loss, top1 = dcl(first, second, 0.5, sigma)
    assert (loss.item(), top1.item()) == (0, 1)


def test_the_nearest_is_looked_for_among_all_others():
    same = torch.eye(5)
    assert dcl(same, same, 0.5)[1].item() == 1
    assert dcl(same, same.roll(1, dims=0), 0.5)[1].item() == 0


@pytest.mark.parametrize("sigma", [None, 0.5])
def test_in_parts_it_is_the_same_with_the_same_gradients(sigma, monkeypatch):
    views = torch.randn(2, 7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    results = []
    for most in (1 << 24, 3 * 14):
        monkeypatch.setattr(contrast, "_MAX_SIMILARITIES", most)
        leaf = views.clone().requires_grad_()
        loss, top1 = dcl(*leaf, 0.2, sigma)
        loss.backward()
        results.append((loss, top1, leaf.grad))
    for whole, in_parts in zip(*results, strict=True):
        torch.testing.assert_close(in_parts, whole)


def test_half_precision_does_not_reach_the_similarities():
    views = torch.randn(2, 16, 8, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        loss = dcl(*views, 0.1, 0.5)[0]
    assert loss.item() == pytest.approx(naive(*views.double(), 0.1, 0.5), rel=1e-5)
