"""The loss of Barlow Twins against a naive loop, hand values and laws; several processes against one."""

import math

import pytest
import torch

from pretext.barlow_twins import BarlowTwins
from ssl_toolkit.augment import RandomView
from ssl_toolkit.distributed.ranks import rank
from ssl_toolkit.losses import barlow_twins, cross_correlation
from ssl_toolkit.modules.backbone import Backbone
from ssl_toolkit.optim import SGD
from ssl_toolkit.schedule import Constant

# so large that what is added to a variance does not count
LARGE = 1e4


def embeddings(num, width, dtype=torch.float64):
    """Two views that agree in part, with another mean and spread in each dimension."""
    generator = torch.Generator().manual_seed(num)
    shared, *own = torch.randn(3, num, width, generator=generator, dtype=torch.float64)
    scale, shift = torch.rand(2, width, generator=generator, dtype=torch.float64)
    return [(LARGE * (shift + (0.5 + scale) * (shared + 0.5 * each))).to(dtype) for each in own]


def naive_barlow_twins(first, second, weight):
    """Equations 1 and 2 of the paper, one product at a time."""

    def column(view, i):
        values = [float(row[i]) for row in view.double()]
        mean = sum(values) / len(values)
        return [value - mean for value in values]

    def correlation(i, j):
        a, b = column(first, i), column(second, j)
        products = sum(x * y for x, y in zip(a, b, strict=True))
        return products / (math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(y * y for y in b)))

    width = first.shape[1]
    c = [[correlation(i, j) for j in range(width)] for i in range(width)]
    diagonal = [c[i][i] for i in range(width)]
    rest = [c[i][j] for i in range(width) for j in range(width) if i != j]
    loss = sum((1 - each) ** 2 for each in diagonal) + weight * sum(each**2 for each in rest)
    return loss, sum(diagonal) / width, math.sqrt(sum(each**2 for each in rest) / max(1, len(rest)))


def orthogonal():
    """Seven uncorrelated columns of 1 and -1 with mean 0 (a Hadamard matrix without its first column)."""
    matrix = torch.ones(1, 1, dtype=torch.float64)
    for _ in range(3):
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return LARGE * matrix[:, 1:]


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4), (torch.bfloat16, 1e-4)], ids=str
)
@pytest.mark.parametrize(("num", "width"), [(2, 3), (7, 5), (16, 1)])
def test_equals_the_naive_loop(num, width, dtype, tolerance):
    first, second = embeddings(num, width, dtype)
    found = barlow_twins(first, second, 0.03)
    assert found[0].dtype == torch.promote_types(dtype, torch.float32)
    assert [each.item() for each in found] == pytest.approx(naive_barlow_twins(first, second, 0.03), rel=tolerance)


def test_half_precision_does_not_reach_the_statistics():
    first, second = embeddings(16, 8, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        loss = barlow_twins(first, second)[0]
    assert loss.item() == pytest.approx(naive_barlow_twins(first, second, 0.005)[0], rel=1e-4)


def test_scale_shift_and_order_do_not_matter():
    first, second = embeddings(9, 6)
    loss = barlow_twins(first, second)[0]
    generator = torch.Generator().manual_seed(0)
    scales, shifts = torch.rand(2, 2, 6, generator=generator, dtype=torch.float64) + 0.5
    moved = [scale * view + LARGE * shift for view, scale, shift in zip((first, second), scales, shifts, strict=True)]
    order = torch.randperm(9, generator=generator)
    for views in (moved, (first[order], second[order]), (second, first)):
        torch.testing.assert_close(barlow_twins(*views)[0], loss, rtol=1e-9, atol=0)
    # but which view belongs to which matters
    assert barlow_twins(first, second[order])[0] > 1.5 * loss


def test_hand_values():
    columns = orthogonal()
    assert barlow_twins(columns, columns)[0].item() == pytest.approx(0, abs=1e-15)
    # views that contradict each other: (1 + 1)^2 in each dimension
    assert barlow_twins(columns, -columns)[0].item() == pytest.approx(4 * 7)
    # each dimension of one view is another one of the other: all is wrong, and seven correlations of 1 are off
    assert barlow_twins(columns, columns.roll(1, dims=1), 0.1)[0].item() == pytest.approx(7 + 0.1 * 7)
    # one dimension seven times
    loss, agreement, redundancy = barlow_twins(columns[:, :1].expand(8, 7), columns[:, :1].expand(8, 7), 0.1)
    assert loss.item() == pytest.approx(0.1 * 7 * 6)
    assert (agreement.item(), redundancy.item()) == pytest.approx((1, 1))


@pytest.mark.parametrize("num", [1, 4])
def test_what_does_not_vary_has_no_correlation_and_a_finite_gradient(num):
    first, second = torch.randn(2, num, 3, generator=torch.Generator().manual_seed(0))
    first[:, 1] = 2.5
    leaf = first.requires_grad_()
    correlation = cross_correlation(leaf, second)
    assert (correlation[1] == 0).all()
    barlow_twins(leaf, second)[0].backward()
    assert leaf.grad.isfinite().all()
    if num == 1:
        assert barlow_twins(leaf, second)[0].item() == 3


def make_task(width, weight):
    backbone = Backbone("resnet10t", kwargs={"channels": (4, 4, 8, 8), "stem_width": 4})
    common = {"optimizer": SGD(lr=0.01), "schedule": Constant(), "view": RandomView(16)}
    return BarlowTwins(backbone=backbone, projector_widths=(8, width), off_diagonal=weight, **common)


@pytest.mark.parametrize("weight", [-0.1, 1.5])
def test_a_weight_out_of_range_is_refused(weight):
    with pytest.raises(ValueError, match=f"off_diagonal is {weight}, expected a weight of 0 to 1"):
        make_task(4, weight)


def test_initial_loss_is_that_of_noise():
    generator = torch.Generator().manual_seed(0)
    losses = [barlow_twins(*torch.randn(2, 9, 20, generator=generator), 0.1)[0] for _ in range(1500)]
    assert torch.stack(losses).mean().item() == pytest.approx(make_task(20, 0.1).initial_loss(9), rel=0.01)


def test_least_loss_is_reached_and_not_passed():
    task = make_task(12, 0.005)
    leaves = [view.requires_grad_() for view in torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(0))]
    optimizer = torch.optim.Adam(leaves, lr=0.05)
    for step in range(400):
        optimizer.param_groups[0]["lr"] = 0.05 * (1 - step / 400)
        optimizer.zero_grad()
        loss = barlow_twins(*leaves, 0.005)[0]
        loss.backward()
        optimizer.step()
    # twelve dimensions and five samples: the optimum of eigenvalues 3, 3, 3, 3 is 0.12
    assert task.least_loss(5) <= loss.item() < 1.05 * task.least_loss(5)
    assert task.least_loss(13) == 0  # as many samples as it takes
    assert task.least_loss(1) == barlow_twins(*torch.randn(2, 1, 12), 0.005)[0].item()


SIZES = [3, 5, 2]


def gradients_of_a_part(first, second):
    leaves = [view.split(SIZES)[rank()].clone().requires_grad_() for view in (first, second)]
    values = barlow_twins(*leaves)
    values[0].backward()
    return [value.item() for value in values], torch.cat([leaf.grad for leaf in leaves], dim=1)


def test_three_processes_with_unequal_parts_equal_one(run_processes):
    views = [view.requires_grad_() for view in embeddings(sum(SIZES), 6)]
    values = barlow_twins(*views)
    values[0].backward()
    gradient = torch.cat([view.grad for view in views], dim=1)
    slices = run_processes(gradients_of_a_part, 3, *(view.detach() for view in views))
    for found, _ in slices:
        assert found == pytest.approx([value.item() for value in values], rel=1e-10)
    # every process computes the whole loss, so each gradient is three times that of one; DDP averages over the three
    averaged = torch.cat([part for _, part in slices]) / 3
    error = ((averaged - gradient).norm() / gradient.norm()).item()
    assert error < 1e-10

    # and this tells right from wrong: the mean of the losses of the parts has another gradient
    leaves = [view.detach().clone().requires_grad_() for view in views]
    slices = zip(*(leaf.split(SIZES) for leaf in leaves), strict=True)
    sum(barlow_twins(*part)[0] for part in slices).div(3).backward()
    local = torch.cat([leaf.grad for leaf in leaves], dim=1)
    assert (local - gradient).norm() > 0.3 * gradient.norm()
