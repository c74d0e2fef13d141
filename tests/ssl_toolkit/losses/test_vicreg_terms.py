"""The terms of VICReg against naive loops, hand values and laws."""

import math

import pytest
import torch

from ssl_toolkit.losses import invariance, spread


def naive_spread(embeddings):
    """Equations 1 to 4 of the paper, one number at a time."""
    num, width = embeddings.shape
    rows = embeddings.tolist()
    means = [sum(row[d] for row in rows) / num for d in range(width)]
    covariance = [
        [sum((row[a] - means[a]) * (row[b] - means[b]) for row in rows) / (num - 1) for b in range(width)]
        for a in range(width)
    ]
    lacking = sum(max(0.0, 1 - math.sqrt(covariance[d][d] + 1e-4)) for d in range(width)) / width
    between = sum(covariance[a][b] ** 2 for a in range(width) for b in range(width) if a != b) / width
    return lacking, between


@pytest.mark.parametrize("scale", [0.3, 1.0, 4.0])
def test_equals_the_naive_loop(scale):
    embeddings = scale * torch.randn(7, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 5
    assert [each.item() for each in spread(embeddings)] == pytest.approx(naive_spread(embeddings), rel=1e-10)


def test_its_gradient_is_that_of_the_naive_loop():
    embeddings = 0.5 * torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    leaf = embeddings.clone().requires_grad_()
    sum(spread(leaf)).backward()
    expected = torch.zeros_like(leaf)
    for place in range(leaf.numel()):
        for sign in (1, -1):
            moved = embeddings.clone()
            moved.view(-1)[place] += sign * 1e-6
            expected.view(-1)[place] += sign * sum(naive_spread(moved)) / 2e-6
    torch.testing.assert_close(leaf.grad, expected, rtol=1e-6, atol=1e-8)


def test_a_point_lacks_all_variance_and_has_no_covariance():
    found = spread(torch.full((6, 3), 2.0))
    assert found.variance.item() == pytest.approx(1 - math.sqrt(1e-4))
    assert found.covariance.item() == 0


def test_what_varies_enough_and_independently_costs_nothing():
    corners = 2.0 * torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]])
    assert [each.item() for each in spread(corners)] == [0, pytest.approx(0)]


def test_one_image_has_no_spread_that_could_be_measured():
    assert [each.item() for each in spread(torch.randn(1, 3))] == [pytest.approx(0.99), 0]


def test_it_does_not_depend_on_where_the_embeddings_lie():
    embeddings = torch.randn(8, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(spread(embeddings + 100), spread(embeddings))


def test_invariance_is_the_mean_squared_difference_in_full_precision():
    first, second = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0))
    expected = sum((a - b) ** 2 for a, b in zip(first.flatten().tolist(), second.flatten().tolist(), strict=True)) / 24
    with torch.autocast("cpu", torch.bfloat16):
        assert invariance(first, second).item() == pytest.approx(expected, rel=1e-5)
