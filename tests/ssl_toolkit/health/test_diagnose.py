"""The diagnosis finds faults that were put in, and finds nothing in healthy recipes."""

import json
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from downstream.classification import Classification
from pretext.barlow_twins import BarlowTwins
from pretext.byol import BYOL
from pretext.moco_v2 import MoCoV2
from pretext.patch_position import PatchPosition
from pretext.simclr import SimCLR
from ssl_toolkit import init
from ssl_toolkit.augment import RandomView
from ssl_toolkit.cli import main
from ssl_toolkit.cli.diagnose import diagnose as command
from ssl_toolkit.cli.train import train
from ssl_toolkit.data import ImageData
from ssl_toolkit.health.diagnose import diagnose
from ssl_toolkit.losses import info_nce, nt_xent
from ssl_toolkit.modules.backbone import Backbone
from ssl_toolkit.optim import SGD, AdamW
from ssl_toolkit.schedule import Constant, Cosine

RECIPE = """
model:
  class_path: pretext.simclr.SimCLR
  init_args:
    backbone: {name: resnet10t, kwargs: {stem_width: 8, channels: [8, 16, 16, 32], drop_path_rate: 0.1}}
    view: {size: 24}
    projector_widths: [32, 16]
    optimizer: {class_path: ssl_toolkit.optim.AdamW}
    schedule: {class_path: ssl_toolkit.schedule.Cosine, init_args: {warmup_percent: 10}}
data: {source: procedural, max_images: 80, image_size: 32, batch_size: 16, cache: memory}
trainer: {max_epochs: 20, accelerator: cpu, precision: bf16-mixed}
tracker: none
"""


def backbone(name="resnet10t"):
    return Backbone(name, kwargs={"stem_width": 8, "channels": (8, 16, 16, 32)})


def classification(task_class=Classification, lr=0.002, optimizer=AdamW, **arguments):
    common = {"backbone": backbone(), "optimizer": optimizer(lr=lr), "schedule": Cosine(warmup_percent=10)}
    return task_class(**{**common, **arguments})


def examined(task, **data):
    data = ImageData(source="procedural", **{"max_images": 120, "image_size": 24, "batch_size": 32, **data})
    return diagnose(task, data, {"max_epochs": 20, "accelerator": "cpu"})


def kinds(diagnosis):
    return {finding.kind for finding in diagnosis.findings}


@pytest.mark.parametrize(
    "seed",
    [pytest.param(0, marks=pytest.mark.slow), *(pytest.param(seed, marks=pytest.mark.nightly) for seed in range(1, 5))],
)
def test_healthy_tasks_have_no_finding(seed):
    torch.manual_seed(seed)
    common = {"optimizer": AdamW(lr=0.002), "schedule": Cosine(warmup_percent=10), "seed": seed}
    patches = {"view": RandomView(60), "patch_size": 18, "jitter": 1, "colour": "none", "hidden_width": 64}
    for task in (
        SimCLR(backbone=backbone(), view=RandomView(24), projector_widths=(32, 16), **common),
        PatchPosition(backbone=Backbone("resnet10t", stem="standard", kwargs={"channels": (16, 16, 32, 32)}),
                      **patches, **common),
        classification(seed=seed),
        classification(seed=seed, optimizer=SGD, lr=0.1, head="mlp", hidden=32, dropout=0.2),
        classification(seed=seed, freeze_backbone=True),
        BarlowTwins(backbone=backbone(), view=RandomView(24), projector_widths=(64, 64), **common),
    ):  # fmt: skip
        diagnosis = examined(task, seed=seed)
        assert not diagnosis.findings, [str(finding) for finding in diagnosis.findings]


@pytest.mark.parametrize(("optimizer", "lr"), [(AdamW, 0.002), (SGD, 0.1)])
@pytest.mark.slow
def test_a_rate_1000_times_too_large_or_too_small_is_found(optimizer, lr):
    large, small = (examined(classification(optimizer=optimizer, lr=lr * factor)) for factor in (1000, 0.001))
    assert [finding.kind for finding in large.findings] == ["learning rate"]
    assert "too large" in str(large.findings[0])
    assert [finding.kind for finding in small.findings] == ["learning rate"]
    assert "too small" in str(small.findings[0])


@pytest.mark.slow
def test_zeros_everywhere_are_found():
    zeros = [init.Keep(""), init.Zeros(r"conv\d*(\.\d)?\.weight|downsample.*1\.weight|head.*weight")]
    found = kinds(examined(classification(init=zeros)))
    assert {"no gradient", "symmetry", "overfitting one batch"} <= found


@pytest.mark.slow
def test_a_head_of_zeros_is_no_fault():
    assert not examined(classification(init=[init.Keep(""), init.Zeros("^head")])).findings


def test_large_weights_are_found():
    assert "initial loss" in kinds(examined(classification(init=[init.Keep(""), init.Normal("^head.*weight", 1.0)])))


class Deep(Classification):
    """A head of ten layers without normalisation."""

    def build_head(self, num_features):
        layers = [layer for _ in range(10) for layer in (nn.Linear(32, 32), nn.ReLU())]
        self.head = nn.Sequential(*layers, nn.Linear(32, self.num_classes))


@pytest.mark.parametrize(("std", "kind"), [(1.0, "exploding gradients"), (0.01, "vanishing gradients")])
@pytest.mark.slow
def test_weights_that_are_too_large_or_too_small_for_the_depth_are_found(std, kind):
    initializers = [init.Keep(""), init.Normal("^head.*weight", std), init.Zeros("^head.*bias")]
    found = kinds(examined(classification(Deep, init=initializers)))
    # from the top down the gradient grows with large weights, and fades with small ones
    assert kind in found


@pytest.mark.slow
def test_a_dead_layer_is_found():
    dead = init.Constant(r"layer2\.0\.bn1\.bias|head\.1\.bias", -100.0)
    found = examined(classification(head="mlp", hidden=32, init=[init.Keep(""), dead]))
    assert "dead units" in kinds(found)
    assert any(layer.dead == 1 for layer in found.layers)


class _Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return 2 * gradient


class Doubled(Classification):
    """Its backward has a factor that its forward has not."""

    def logits(self, features):
        return super().logits(_Doubled.apply(features))


class Detached(SimCLR):
    """One of the two views is held constant."""

    def loss(self, views, context):
        output = super().loss(views, context)
        first, second = (self.projector(self.backbone(view)) for view in views)
        return output._replace(loss=nt_xent(first, second.detach(), self.temperature)[0])


class Honest(Detached):
    stops_gradients = True


class Together(BYOL):
    """All views shall be the same, whatever their image."""

    def loss(self, views, context):
        output, (_, embedded) = super().loss(views, context), self.embed(views)
        unit = F.normalize(torch.cat(list(embedded.values())), dim=1)
        return output._replace(loss=2 - 2 * (unit @ unit.T).mean())


@pytest.mark.slow
def test_a_wrong_gradient_is_found():
    torch.manual_seed(0)
    assert kinds(examined(classification(Doubled))) == {"gradient"}
    arguments = {"view": RandomView(16), "projector_widths": (16, 8), "backbone": backbone()}
    arguments |= {"optimizer": AdamW(lr=0.001), "schedule": Constant()}
    assert "gradient" in kinds(examined(Detached(**arguments)))
    assert "gradient" not in kinds(examined(Honest(**arguments)))


@pytest.mark.slow
def test_a_wrong_number_of_classes_is_found():
    assert kinds(examined(classification(num_classes=100))) == {"initial loss"}


class SameView(BarlowTwins):
    """Its two views are one."""

    def make_views(self, images, keys):
        first, _ = super().make_views(images, keys)
        return first, first


@pytest.mark.slow
def test_an_answer_that_leaks_is_found():
    arguments = {"view": RandomView(24), "projector_widths": (64, 64), "backbone": backbone()}
    arguments |= {"optimizer": AdamW(lr=0.002), "schedule": Cosine(warmup_percent=10)}
    found = examined(SameView(**arguments)).findings
    assert [finding.kind for finding in found] == ["initial loss"]
    assert "leaks" in str(found[0])


class Shuffled(Classification):
    """Its labels are others at each step."""

    calls = 0

    def step(self, batch, keys, context):
        type(self).calls += 1
        labels = torch.randint(10, batch.labels.shape, generator=torch.Generator().manual_seed(self.calls))
        return super().step(batch._replace(labels=labels), keys, context)


@pytest.mark.slow
def test_labels_that_mean_nothing_are_found():
    assert "overfitting one batch" in kinds(examined(classification(Shuffled)))


def test_the_least_loss_of_simclr_is_reached_by_a_simplex():
    task = SimCLR(backbone=backbone(), view=RandomView(24), optimizer=SGD(lr=0.1), schedule=Constant(), temperature=0.3)
    corners = torch.eye(6) - 1 / 6
    loss, _ = nt_xent(corners, corners, 0.3)
    assert float(loss) == pytest.approx(task.least_loss(6), rel=1e-5)
    # random embeddings of many dimensions know nothing
    torch.manual_seed(0)
    loss, _ = nt_xent(*torch.randn(2, 64, 4096), 0.3)
    assert float(loss) == pytest.approx(task.initial_loss(64), abs=0.01)
    assert classification(num_classes=4).initial_loss(1) == pytest.approx(math.log(4))


def test_first_and_least_losses_are_exact_where_embeddings_are_equal_or_orthogonal():
    arguments = {"backbone": backbone(), "view": RandomView(24), "optimizer": SGD(lr=0.1), "schedule": Constant()}
    simclr, moco = SimCLR(**arguments, temperature=0.3), MoCoV2(**arguments, temperature=0.3, queue_size=5)
    equal = torch.ones(4, 8)
    assert float(nt_xent(equal, equal, 0.3)[0]) == pytest.approx(simclr.initial_loss(4), rel=1e-5)
    assert float(info_nce(equal, equal, 0.3, F.normalize(torch.ones(5, 8)))[0]) == pytest.approx(
        moco.initial_loss(4), rel=1e-5
    )
    keys, queue = torch.eye(9)[:4], torch.eye(9)[4:]
    assert float(info_nce(keys, keys, 0.3, queue)[0]) == pytest.approx(moco.least_loss(4), rel=1e-5)


@pytest.mark.slow
def test_the_command_prints_writes_and_changes_nothing(tmp_path, capsys):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE)
    before = torch.get_rng_state()
    diagnosis = command(["pretrain", "-c", str(recipe), "--out", str(tmp_path / "out")])
    assert torch.equal(before, torch.get_rng_state())
    assert "nothing found" in capsys.readouterr().out
    written = json.loads((tmp_path / "out" / "diagnosis.json").read_text())
    assert [check["name"] for check in written["checks"]] == [check.name for check in diagnosis.checks]
    assert (tmp_path / "out" / "layers.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["out", "recipe.yaml"]
    run = train(
        "pretrain", ["-c", str(recipe), "--out", str(tmp_path / "run"), "--trainer.max_steps", "1"], quietly=True
    )
    assert main(["diagnose", "pretrain", "-c", str(recipe), "--out", str(run)]) == 2
    assert "holds a run" in capsys.readouterr().err
    assert main(["diagnose", "pretran", "-c", str(recipe)]) == 2
    assert "did you mean 'pretrain'" in capsys.readouterr().err
    assert main(["diagnose", "pretrain", "-c", str(recipe), "--resume", str(run)]) == 2


def teacher_task(kind=BYOL, **arguments):
    common = {"optimizer": AdamW(lr=0.002), "schedule": Cosine(warmup_percent=10), "projector_widths": (32, 16)}
    return kind(backbone=backbone(), view=RandomView(24), **common, **arguments)


@pytest.mark.slow
def test_a_loss_that_falls_because_the_embeddings_collapse_is_not_called_well():
    found = {finding.kind: str(finding) for finding in examined(teacher_task(Together)).findings}
    assert "but by a collapse: the spread of their embeddings falls from 0." in found["overfitting one batch"]


@pytest.mark.parametrize("kind", [BYOL, MoCoV2])
@pytest.mark.slow
def test_teachers_and_queues_are_no_fault_and_frozen_layers_are_not_listed(kind):
    diagnosis = examined(teacher_task(kind))
    assert not diagnosis.findings, [str(finding) for finding in diagnosis.findings]
    names = {layer.name.partition(".")[0] for layer in diagnosis.layers}
    assert names == {"backbone", "projector", *({"predictor"} if kind is BYOL else ())}
    assert not any(name.startswith("teacher") for name in diagnosis.trial.ratios)


@pytest.mark.slow
def test_a_frozen_backbone_is_not_listed():
    diagnosis = examined(classification(freeze_backbone=True))
    assert {layer.name.partition(".")[0] for layer in diagnosis.layers} == {"head"}


@pytest.mark.slow
def test_a_random_queue_begins_within_the_margin():
    for temperature, size in ((0.07, 4), (0.2, 64), (1.0, 4096)):
        task = teacher_task(MoCoV2, temperature=temperature, queue_size=size)
        (check,) = [each for each in examined(task).checks if each.name == "loss at the start"]
        assert not check.findings, (temperature, size, check)
