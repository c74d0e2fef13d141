"""Spread and rank at hand values and for the two kinds of collapse, each of which one of them must see."""

import math

import numpy as np
import pytest
import torch

from ssl_toolkit.evaluation import alignment, lidar, rank_me, spread, uniformity


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


def views_of(num_images=60, width=8, within=0.3, num_views=5):
    drawn = torch.Generator().manual_seed(1)
    return gaussian(num_images, width) + within * torch.randn(num_views, num_images, width, generator=drawn)


def test_alignment_is_the_mean_squared_distance_of_two_views():
    views = views_of(7, 4, num_views=3)
    unit = [[view / view.norm() for view in each] for each in views.double()]
    pairs = [(0, 1), (0, 2), (1, 2)]
    naive = [float(((unit[u][n] - unit[v][n]) ** 2).sum()) for u, v in pairs for n in range(7)]
    assert alignment(views) == pytest.approx(sum(naive) / len(naive))
    assert alignment(torch.stack([views[0], 3 * views[0]])) == pytest.approx(0.0, abs=1e-12)
    assert alignment(torch.stack([views[0], -views[0]])) == pytest.approx(4.0)


def test_uniformity_is_the_mean_potential_of_two_images():
    x = gaussian(9, 5)
    unit = [each / each.norm() for each in x.double()]
    potentials = [math.exp(-2 * float(((a - b) ** 2).sum())) for i, a in enumerate(unit) for b in unit[:i]]
    assert uniformity(x) == pytest.approx(math.log(sum(potentials) / len(potentials)))
    assert uniformity(torch.ones(4, 3)) == pytest.approx(0.0, abs=1e-12)
    assert uniformity(torch.tensor([[1.0, 0.0], [-2.0, 0.0]])) == pytest.approx(-8.0)
    # the least that is known: uniform on the sphere of many dimensions, -2t
    assert uniformity(gaussian(1500, 512)) == pytest.approx(-4.0, abs=0.05)
    with pytest.raises(ValueError, match="there is one image"):
        uniformity(torch.ones(1, 3))


def test_lidar_is_the_rank_of_the_discriminant():
    linalg = pytest.importorskip("scipy.linalg")
    views = views_of()
    x = views.double().numpy()
    means = x.mean(axis=0)
    between = np.cov(means, rowvar=False)
    within = sum(np.cov(x[:, n], rowvar=False) for n in range(x.shape[1])) / x.shape[1] + 1e-4 * np.eye(x.shape[2])
    spectrum = linalg.eigh(between, within, eigvals_only=True)
    p = spectrum / spectrum.sum() + 1e-7
    assert lidar(views) == pytest.approx(math.exp(-(p * np.log(p)).sum()), rel=1e-6)


def test_lidar_sees_what_the_rank_of_the_views_does_not():
    # three directions tell the images apart, the other five differ between views alone
    signal = gaussian(200, 3) @ torch.eye(3, 8)
    noise = torch.randn(5, 200, 8, generator=torch.Generator().manual_seed(2)) * torch.tensor([0.1] * 3 + [1.0] * 5)
    views = signal + noise
    assert lidar(views) == pytest.approx(3.0, abs=0.2)
    assert rank_me(views.flatten(0, 1)) > 7
    assert lidar(torch.ones(3, 10, 4)) == 0.0
    assert math.isnan(lidar(torch.full((2, 3, 4), math.nan)))
    # a change of scale or basis changes nothing, but for the regularization
    mixed = views @ torch.linalg.qr(gaussian(8, 8))[0] * 10
    assert lidar(mixed, 1e-9) == pytest.approx(lidar(views, 1e-9), rel=1e-4)


def test_errors_of_views_give_the_shape():
    for measure in (alignment, lidar):
        with pytest.raises(ValueError, match=r"of two views or more, got \[1, 4, 3\]"):
            measure(torch.ones(1, 4, 3))


def test_errors_give_the_shape():
    for measure in (spread, rank_me):
        with pytest.raises(ValueError, match=r"\[num_images, d\], got \[3\]"):
            measure(torch.ones(3))
        with pytest.raises(ValueError, match=r"got \[0, 3\]"):
            measure(torch.ones(0, 3))
