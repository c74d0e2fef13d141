"""Penalties against hand values; noise, dropout and SAM by their laws."""

import functools
import itertools

import pytest
import torch
from torch import nn

from ssl_toolkit.regularization import (
    L1,
    L2,
    L2SP,
    SAM,
    ActivationNoise,
    DropBlock,
    Dropout,
    ElasticNet,
    FeatureNorm,
    GradientNoise,
    InputNoise,
    Orthogonality,
    SpatialDropout,
    VarianceCovariance,
    WeightNoise,
)
from ssl_toolkit.step import StepContext

FEATURES = torch.zeros(1, 2)


class Empty(nn.Module):
    """What a regularizer needs of a task."""

    def __init__(self):
        super().__init__()
        self.seed, self.global_step, self.undo = 0, 0, []

    def undo_after_backward(self, undo):
        self.undo.append(undo)

    def after_backward(self):
        while self.undo:
            self.undo.pop()()


class Network(Empty):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(8, 2))

    def forward(self, images):
        return self.head(self.backbone(images))


def filled(*values):
    module = nn.Sequential(nn.Linear(2, 1), nn.Linear(1, 1))
    for parameter, value in zip(module.parameters(), values, strict=True):
        nn.init.constant_(parameter, value)
    return module


@pytest.mark.parametrize(
    ("penalty", "expected"),
    [
        (L1(0.5), 0.5 * (3 + 3 + 2)),
        (L1(0.5, pattern="^1"), 0.5 * 2),
        (L2(0.5), 0.5 * (9 + 9 + 4) / 2),
        (ElasticNet(0.5, l1_share=0.25), 0.5 * (0.25 * 8 + 0.75 * 11)),
    ],
)
def test_penalties_on_weights_and_no_biases(penalty, expected):
    assert penalty.penalty(filled(-3.0, 5.0, 2.0, 7.0), FEATURES).item() == pytest.approx(expected)


def test_the_gradient_of_l2_is_the_weight_and_of_l1_its_sign():
    module = nn.Linear(2, 2, bias=False)
    L2(0.3).penalty(module, FEATURES).backward()
    torch.testing.assert_close(module.weight.grad, 0.3 * module.weight)
    module.zero_grad()
    L1(2.0).penalty(module, FEATURES).backward()
    torch.testing.assert_close(module.weight.grad, 2.0 * module.weight.sign())


def test_l1_makes_weights_sparse_and_l2_does_not():
    """Ten inputs, of which one tells the target."""
    torch.manual_seed(0)
    inputs = torch.randn(200, 10)
    targets = inputs[:, :1] + 0.1 * torch.randn(200, 1)
    small = {}
    for penalty in (L1(0.05), L2(0.05)):
        module = nn.Linear(10, 1)
        optimizer = torch.optim.SGD(module.parameters(), lr=0.02)
        for _ in range(500):
            optimizer.zero_grad()
            ((module(inputs) - targets).square().mean() + penalty.penalty(module, FEATURES)).backward()
            optimizer.step()
        small[type(penalty)] = int((module.weight.abs() < 1.5e-3).sum())
    assert small[L1] == 9
    assert small[L2] < 5


def test_l2_sp_is_the_distance_from_the_start():
    module = Network()
    penalty = L2SP(0.5)
    penalty.prepare(module)
    assert penalty.penalty(module, FEATURES).item() == 0
    module.backbone[0].weight.data += 0.1
    module.head[1].weight.data += 5
    assert penalty.penalty(module, FEATURES).item() == pytest.approx(0.5 * 0.5 * 0.01 * 3 * 8 * 9, rel=1e-4)


@pytest.mark.parametrize("shape", [(4, 9), (9, 4)])
def test_orthogonality_is_zero_for_orthonormal_rows_or_columns_only(shape):
    module = nn.Linear(*reversed(shape), bias=False)
    nn.init.orthogonal_(module.weight)
    assert Orthogonality(1.0).penalty(module, FEATURES).item() == pytest.approx(0, abs=1e-9)
    module.weight.data *= 2
    # four singular values of 2 instead of 1: each adds (4 - 1)^2
    assert Orthogonality(0.5).penalty(module, FEATURES).item() == pytest.approx(0.5 * 4 * 9, rel=1e-5)


def test_feature_norm():
    assert FeatureNorm(0.1).penalty(nn.Identity(), torch.tensor([[3.0, 4.0], [0.0, 1.0]])).item() == pytest.approx(1.3)


def test_variance_and_covariance_by_loops():
    torch.manual_seed(0)
    features = torch.randn(7, 3) * torch.tensor([0.2, 1.0, 3.0])
    means = features.mean(dim=0)
    expected = 0.0
    for i, j in itertools.product(range(3), range(3)):
        covariance = sum((features[n, i] - means[i]) * (features[n, j] - means[j]) for n in range(7)) / 6
        if i == j:
            expected += max(0.0, 1.5 - float(covariance + 1e-4) ** 0.5) / 3
        else:
            expected += 0.2 * float(covariance) ** 2 / 3
    penalty = VarianceCovariance(2.0, covariance=0.2, least_std=1.5)
    assert penalty.penalty(nn.Identity(), features).item() == pytest.approx(2 * expected, rel=1e-5)


def test_noise_on_inputs_and_activations_has_its_size_and_leaves_evaluation_alone():
    images = torch.rand(4, 3, 200, 200)
    for noise, module, std in [
        (InputNoise(0.3), nn.Identity(), 0.3),
        (ActivationNoise(0.5, "^backbone$"), nn.Identity(), 0.5 * images.std().item()),
    ]:
        task = Empty()
        task.backbone = module
        noise.prepare(task)
        change = task.backbone(images) - images
        assert change.std().item() == pytest.approx(std, rel=0.02)
        assert abs(change.mean().item()) < 0.01
        task.eval()
        assert torch.equal(task.backbone(images), images)


@pytest.mark.parametrize(
    ("drop", "same"),
    [
        (Dropout(0.3, "^backbone$"), ()),
        (SpatialDropout(0.3, "^backbone$"), (2, 3)),
        (DropBlock(0.3, "^backbone$", 3), 1),
    ],
    ids=["Dropout", "SpatialDropout", "DropBlock"],
)
def test_what_is_dropped_together(drop, same):
    torch.manual_seed(0)
    task = Empty()
    task.backbone = nn.Identity()
    drop.prepare(task)
    maps = torch.ones(64, 16, 14, 14)
    dropped = task.backbone(maps) == 0
    assert dropped.float().mean().item() == pytest.approx(0.3, abs=0.04)
    if same:
        assert torch.equal(dropped.any(dim=same), dropped.all(dim=same))
    else:
        fractions = dropped.float()
        for dimensions in ((2, 3), 1):
            assert fractions.mean(dim=dimensions).std() < 0.15, "neither channels nor places are dropped as a whole"
    assert task.backbone(maps).mean().item() == pytest.approx(1, abs=0.05)
    task.eval()
    assert torch.equal(task.backbone(maps), maps)


def test_weight_noise_is_there_for_the_gradient_and_gone_for_the_step():
    task, noise = Network(), WeightNoise(0.5, "^head")
    before = {name: parameter.detach().clone() for name, parameter in task.named_parameters()}
    seen = noise.around(
        task, StepContext(), lambda: {name: each.detach().clone() for name, each in task.named_parameters()}
    )
    changed = {name for name in before if not torch.equal(before[name], seen[name])}
    assert changed == {"head.1.weight"}
    task.after_backward()
    assert all(torch.equal(before[name], each) for name, each in task.named_parameters())

    large = Empty()
    large.layer = nn.Linear(300, 300)
    start = large.layer.weight.detach().clone()
    WeightNoise(0.5).around(large, StepContext(), lambda: None)
    assert (large.layer.weight - start).std().item() == pytest.approx(0.5 * start.std().item(), rel=0.02)


@pytest.mark.parametrize("sam_first", [True, False])
def test_sam_and_weight_noise_together_leave_no_trace(sam_first):
    task = Network()
    before = {name: parameter.detach().clone() for name, parameter in task.named_parameters()}
    images, points = torch.rand(8, 3, 12, 12), []

    def compute():
        points.append(task.head[1].weight.detach().clone())
        return task(images).square().mean(), None

    pair = [SAM(0.1), WeightNoise(0.5)]
    for regularizer in pair if sam_first else reversed(pair):
        compute = functools.partial(regularizer.around, task, StepContext(), compute)
    compute()[0].backward()
    assert len(points) == 2
    noisy, worst = (point - before["head.1.weight"] for point in points)
    assert (worst - noisy).norm() < 0.11 < noisy.norm(), "the noise is added once, and the second point is near"
    task.after_backward()
    assert all(torch.equal(before[name], each) for name, each in task.named_parameters())


def test_gradient_noise_falls_with_the_steps():
    task = Empty()
    task.layer = nn.Linear(300, 300, bias=False)
    stds = []
    for task.global_step in (0, 99):
        task.layer.weight.grad = torch.zeros(300, 300)
        GradientNoise(variance=0.25, decay=0.5).before_optimizer_step(task)
        stds.append(task.layer.weight.grad.std().item())
    assert stds == pytest.approx([0.5, 0.5 * 100**-0.25], rel=0.02)


@pytest.mark.parametrize("adaptive", [False, True])
def test_sam_is_the_gradient_of_the_worst_point_nearby(adaptive):
    """By hand for a loss whose gradient is known: 0.5 w^T A w."""
    curvature = torch.tensor([[3.0, 1.0], [1.0, 2.0]])
    task = Empty()
    task.weight = nn.Parameter(torch.tensor([1.0, -2.0]))
    sam = SAM(rho=0.1, adaptive=adaptive)
    loss, _ = sam.around(task, StepContext(), lambda: (0.5 * task.weight @ curvature @ task.weight, None))
    loss.backward()
    task.after_backward()
    weight = torch.tensor([1.0, -2.0])
    scale = weight.abs() if adaptive else torch.ones(2)
    gradient = curvature @ weight
    worst = weight + 0.1 * scale**2 * gradient / (scale * gradient).norm()
    torch.testing.assert_close(task.weight.grad, curvature @ worst)
    assert torch.equal(task.weight.detach(), weight)
    # to first order nothing nearby is worse
    values = []
    for angle in torch.linspace(0, 6.283, 100):
        point = weight + 0.1 * scale * torch.stack([angle.cos(), angle.sin()])
        values.append(0.5 * point @ curvature @ point)
    assert loss.item() > max(values) - 0.02


def test_sam_under_autocast_with_dropout_and_batchnorm():
    task = Network().train()
    task.head.insert(1, nn.Dropout(0.5))
    images = torch.rand(8, 3, 12, 12)
    seen = []

    def compute():
        seen.append((torch.rand(1, generator=None).item(), task.backbone[1].running_mean.clone()))
        loss = task(images).float().square().mean()
        seen.append(loss.item())
        return loss, None

    with torch.autocast("cpu", dtype=torch.bfloat16):
        sam = SAM(rho=1.0)
        sam.around(task, StepContext(), compute)[0].backward()
    task.after_backward()
    (first, before), loss, (second, between), worst = seen
    assert first == second, "the same random numbers in both passes"
    assert worst > loss * 1.05, "the second pass sees the moved weights"
    assert not torch.equal(before, between)
    assert torch.equal(task.backbone[1].running_mean, between), "running statistics of the first pass"
    assert task.backbone[1].num_batches_tracked == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: L1(-1), "strength is -1"),
        (lambda: L1(0.5, pattern="tail").penalty(nn.Linear(2, 2), FEATURES), "no trainable weight's name matches"),
        (lambda: ElasticNet(1, l1_share=2), "l1_share is 2"),
        (lambda: VarianceCovariance(1, covariance=-1), "covariance is -1"),
        (lambda: InputNoise(-1), "std is -1"),
        (lambda: Dropout(1.0, ""), "probability is 1.0"),
        (lambda: DropBlock(0.1, "", 0), "block_size is 0"),
        (lambda: Dropout(0.1, "tail").prepare(nn.Sequential(nn.Identity())), "no module's name matches 'tail'"),
        (lambda: SAM(rho=0), "rho is 0"),
    ],
)
def test_mistakes_are_told(make, message):
    with pytest.raises(ValueError, match=message):
        make()
