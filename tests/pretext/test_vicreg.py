"""VICReg: its sum of terms against a naive loop, its bounds, and what it refuses."""

import itertools
import math

import pytest
import torch

from pretext.vicreg import VICReg
from ssl_toolkit.augment import RandomView, Views
from ssl_toolkit.batch import Batch, Images
from ssl_toolkit.losses import invariance, spread
from ssl_toolkit.modules import Backbone
from ssl_toolkit.optim import SGD
from ssl_toolkit.schedule import Constant

NUM = 6


def make_task(**arguments):
    torch.manual_seed(0)
    backbone = Backbone("resnet10t", kwargs={"channels": (4, 4, 8, 8), "stem_width": 4})
    given = {"projector_widths": (16, 8), "view": RandomView(24), **arguments}
    return VICReg(backbone=backbone, optimizer=SGD(), schedule=Constant(), **given)


def make_batch():
    pixels = torch.randint(0, 256, (NUM, 3, 32, 32), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    return Batch(Images(pixels, torch.full((NUM, 2), 32)), torch.arange(NUM), torch.full((NUM,), -1), 0)


def naive_terms(embedded):
    """Invariance, variance and covariance of the embeddings of some views, one number at a time."""
    num, width = embedded[0].shape
    views = [each.double().tolist() for each in embedded]
    places = list(itertools.product(range(num), range(width)))
    apart = [
        sum((one[n][d] - other[n][d]) ** 2 for n, d in places) / (num * width)
        for one, other in itertools.combinations(views, 2)
    ]
    lacking, between = [], []
    for rows in views:
        means = [sum(row[d] for row in rows) / num for d in range(width)]
        covariance = [
            [sum((row[a] - means[a]) * (row[b] - means[b]) for row in rows) / (num - 1) for b in range(width)]
            for a in range(width)
        ]
        lacking.append(sum(max(0.0, 1 - math.sqrt(covariance[d][d] + 1e-4)) for d in range(width)) / width)
        between.append(sum(covariance[a][b] ** 2 for a in range(width) for b in range(width) if a != b) / width)
    return sum(apart) / len(apart), sum(lacking) / len(views), 2 * sum(between) / len(views)


@pytest.mark.parametrize("count", [2, 3])
def test_the_loss_is_the_weighted_sum_of_its_terms(count):
    weights = {"invariance_weight": 3.0, "variance_weight": 5.0, "covariance_weight": 7.0}
    task, batch = make_task(view=None, views={"any": Views(count=count, size=24)}, **weights).double(), make_batch()
    # so that no term is 0 or as small as what is added to the variances
    task.projector[-1].weight.data.mul_(3)
    views = tuple(view.double() for view in task.make_views(batch.images, task.keys(batch)))
    output = task.loss(views, None)
    expected = naive_terms([each.detach() for each in task.embed(views)[1].values()])
    assert min(expected) > 0.1
    found = [output.metrics[name].item() for name in ("invariance", "variance", "covariance")]
    assert found == pytest.approx(expected)
    assert output.loss.item() == pytest.approx(sum(w * each for w, each in zip((3, 5, 7), expected, strict=True)))


def test_a_term_without_weight_has_no_gradient():
    task, batch = make_task(invariance_weight=0.0, variance_weight=0.0, covariance_weight=0.0), make_batch()
    output = task.compute(batch)
    output.loss.backward()
    assert output.loss.item() == 0
    assert all((each.grad == 0).all() for each in task.parameters())


@pytest.mark.parametrize("covariance", [1.0, 9.0])
def test_least_loss_is_approached_and_not_passed(covariance):
    # 24 dimensions, 4 samples
    task = make_task(projector_widths=(16, 24), covariance_weight=covariance)
    leaf = torch.randn(4, 24, generator=torch.Generator().manual_seed(0)).requires_grad_()
    optimizer = torch.optim.Adam([leaf], lr=0.05)
    for step in range(300):
        optimizer.param_groups[0]["lr"] = 0.05 * (1 - step / 300)
        optimizer.zero_grad()
        terms = spread(leaf)
        loss = 25 * terms.variance + 2 * covariance * terms.covariance
        loss.backward()
        optimizer.step()
    least = task.least_loss(4)
    assert least > 5
    # what is added to the variances makes it less by so much
    assert least < 1.001 * loss.item()
    if covariance == 1:
        assert loss.item() < 1.02 * least


def test_enough_samples_reach_a_loss_of_0():
    corners = 2.0 * torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]])
    assert (invariance(corners, corners), *spread(corners)) == (0, 0, pytest.approx(0))
    assert make_task(projector_widths=(16, 2)).least_loss(4) == 0
    assert make_task(covariance_weight=0.0).least_loss(2) == 0


def test_equal_embeddings_have_the_initial_loss():
    task = make_task(variance_weight=4.0)
    same = torch.ones(5, 8)
    terms = spread(same)
    assert 4 * terms.variance.item() == pytest.approx(task.initial_loss(5), rel=0.011)
    assert terms.covariance.item() == 0


@pytest.mark.parametrize("name", ["invariance_weight", "variance_weight", "covariance_weight"])
@pytest.mark.parametrize("weight", [-0.1, math.nan])
def test_a_weight_that_is_none_is_refused(name, weight):
    with pytest.raises(ValueError, match=f"^model.{name} is {weight}, expected at least 0$"):
        make_task(**{name: weight})
