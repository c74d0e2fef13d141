"""The regression of unit vectors against hand values and a naive loop."""

import math

import pytest
import torch

from ssl_toolkit.losses import negative_cosine


@pytest.mark.parametrize(("degrees", "expected"), [(0, 0.0), (60, 1.0), (90, 2.0), (180, 4.0)])
def test_hand_values(degrees, expected):
    angle = math.radians(degrees)
    first = torch.tensor([[2.0, 0.0]], dtype=torch.float64)
    second = 5 * torch.tensor([[math.cos(angle), math.sin(angle)]], dtype=torch.float64)
    assert negative_cosine(first, second).item() == pytest.approx(expected, abs=1e-9)


def test_is_the_mean_of_squared_distances_on_the_sphere():
    first, second = torch.randn(2, 5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    squares = [float(((a / a.norm() - b / b.norm()) ** 2).sum()) for a, b in zip(first, second, strict=True)]
    assert negative_cosine(first, second).item() == pytest.approx(sum(squares) / 5)


def test_only_the_predictions_have_a_gradient():
    first, second = (torch.randn(3, 4, requires_grad=True) for _ in range(2))
    negative_cosine(first, second).backward()
    assert first.grad is not None
    assert second.grad is None


def test_half_precision_does_not_reach_it():
    first, second = torch.randn(2, 16, 8, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        loss = negative_cosine(first.bfloat16(), second.bfloat16())
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(negative_cosine(first, second).item(), abs=0.02)
