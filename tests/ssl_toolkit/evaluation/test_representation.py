"""Spread and rank at hand values and for the two kinds of collapse, each of which one of them must see."""

import math

import pytest
import torch

from ssl_toolkit.evaluation import rank_me, spread


def gaussian(num=2000, width=64):
    return torch.randn(num, width, generator=torch.Generator().manual_seed(0))


def test_spread_at_hand_values():
    # the four unit vectors +-e1, +-e2: each coordinate has mean 0 and variance 1/2
    cross = torch.tensor([[1.0, 0.0], [-5.0, 0.0], [0.0, 2.0], [0.0, -0.1]])
    assert spread(cross) == pytest.approx(1.0)
    # e1 and e2: both coordinates have standard deviation 1/2
    assert spread(torch.eye(2)) == pytest.approx(0.5 * math.sqrt(2))
    assert spread(torch.ones(5, 3)) == pytest.approx(0.0, abs=1e-7)


def test_rank_at_hand_values():
    assert rank_me(torch.eye(7)) == pytest.approx(7.0, rel=1e-4)
    assert rank_me(torch.outer(torch.arange(1.0, 6.0), torch.tensor([1.0, 2.0, 3.0]))) == pytest.approx(1.0, abs=1e-3)
    # singular values 3 and 1: p = 3/4, 1/4
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert rank_me(torch.diag(torch.tensor([3.0, -1.0]))) == pytest.approx(math.exp(entropy), rel=1e-5)
    assert rank_me(torch.zeros(4, 3)) == 0.0
    assert math.isnan(rank_me(torch.tensor([[math.nan, 1.0]])))


def test_rank_equals_the_definition_by_a_full_decomposition():
    for shape in ((40, 12), (12, 40)):
        x = gaussian(*shape)
        singular = torch.linalg.svdvals(x.double())
        p = singular / singular.sum() + 1e-7
        assert rank_me(x) == pytest.approx(float(torch.exp(-(p * p.log()).sum())), rel=1e-6)


def test_a_healthy_representation():
    assert spread(gaussian()) == pytest.approx(1.0, abs=0.01)
    assert rank_me(gaussian()) > 60


def test_a_point_collapse_is_seen_by_the_spread():
    collapsed = gaussian() * 1e-3 + gaussian(1)
    assert spread(collapsed) < 0.01


def test_a_dimensional_collapse_is_seen_by_the_rank():
    collapsed = gaussian()[:, :3] @ gaussian(3)
    assert rank_me(collapsed) == pytest.approx(3.0, abs=0.3)
    assert spread(collapsed) > 0.8


def test_errors_give_the_shape():
    for measure in (spread, rank_me):
        with pytest.raises(ValueError, match=r"\[num_images, d\], got \[3\]"):
            measure(torch.ones(3))
        with pytest.raises(ValueError, match=r"got \[0, 3\]"):
            measure(torch.ones(0, 3))
