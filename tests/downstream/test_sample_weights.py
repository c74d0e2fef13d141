"""Weights of images: their place in the loss of training, where they come from, and where they are refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from downstream.classification import Classification
from downstream.multi_label import MultiLabel
from downstream.ordinal import OrdinalClassification
from downstream.regression import Regression
from ssl_toolkit.batch import Batch, Images
from ssl_toolkit.cli import main
from ssl_toolkit.data import ImageData
from ssl_toolkit.losses.soft_targets import Mixing
from ssl_toolkit.modules.backbone import Backbone
from ssl_toolkit.optim import AdamW
from ssl_toolkit.schedule import Cosine
from ssl_toolkit.step import StepContext

KINDS = {
    "classification": (Classification, {"num_classes": 3}),
    "focal": (Classification, {"num_classes": 3, "focal_gamma": 2.0}),
    "ordinal": (OrdinalClassification, {"num_classes": 3}),
    "regression": (Regression, {"num_targets": 2}),
    "huber": (Regression, {"num_targets": 2, "loss_kind": "huber"}),
    "labels": (MultiLabel, {"num_targets": 2}),
    "asymmetric": (MultiLabel, {"num_targets": 2, "loss_kind": "asymmetric"}),
}


def make(kind):
    torch.manual_seed(0)
    task_class, arguments = KINDS[kind]
    backbone = Backbone("resnet10t", kwargs={"channels": (8, 8, 8, 8)})
    task = task_class(backbone=backbone, optimizer=AdamW(lr=1e-2), schedule=Cosine(), image_size=32, **arguments)
    task.build_head(8)
    return task.double()


def inputs(kind, num=6):
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(num, 8, generator=generator, dtype=torch.float64)
    if "num_classes" in KINDS[kind][1]:
        return features, torch.arange(num) % 3
    targets = torch.randint(0, 2, (num, 2), generator=generator).float()
    targets[2, 1] = torch.nan
    return features, targets


def context(weights, training=True, **given):
    empty = Images(torch.zeros(len(weights), 3, 1, 1, dtype=torch.uint8), torch.ones(len(weights), 2).long())
    batch = Batch(empty, torch.arange(len(weights)), torch.zeros(len(weights)).long(), 0, weights=weights)
    return StepContext(training, batch=batch, **given)


@pytest.mark.parametrize("kind", KINDS)
def test_a_weight_of_two_is_the_image_twice(kind):
    task, (features, targets) = make(kind), inputs(kind)
    twice = torch.tensor([0, 0, 1, 2, 3, 4, 5, 5, 5])
    weights = twice.bincount().double()
    weights = weights / weights.mean()
    loss = task.loss(features, targets, context(weights)).loss
    repeated = task.loss(features[twice], targets[twice], StepContext()).loss
    torch.testing.assert_close(loss, repeated)
    parameters = list(task.head.parameters())
    for one, other in zip(*(torch.autograd.grad(each, parameters) for each in (loss, repeated)), strict=True):
        torch.testing.assert_close(one, other)
    plain = task.loss(features, targets, StepContext(training=False)).loss
    torch.testing.assert_close(task.loss(features, targets, context(weights, training=False)).loss, plain)
    torch.testing.assert_close(
        task.loss(features, targets, context(torch.ones(6).double())).loss,
        task.loss(features, targets, StepContext()).loss,
    )


def test_a_mixed_image_counts_as_the_mixture():
    weights = torch.tensor([3.0, 1.0, 0.0])
    mixing = Mixing(torch.tensor([1, 2, 2]), torch.tensor([0.75, 0.5, 1.0]))
    found = context(weights, mixing=mixing).sample_weights()
    assert found is not None
    assert found.tolist() == [2.5, 0.5, 0.0]


@pytest.fixture
def table(tmp_path):
    """A function that writes twelve images of two classes, once, and a table of them with such weights."""
    random = np.random.default_rng(0)
    for number in range(12):
        Image.fromarray(random.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(tmp_path / f"{number:02d}.png")

    def write(weights, name="weight"):
        rows = [
            f"{number:02d}.png,{'ab'[number % 2]},{'test' if number > 7 else 'train'},{weight}"
            for number, weight in enumerate(weights)
        ]
        (tmp_path / "table.csv").write_text("\n".join([f"path,label,split,{name}", *rows]) + "\n")
        return tmp_path / "table.csv"

    return write


def opened(table, **columns):
    data = ImageData(table=str(table), columns=columns or None, image_size=32, batch_size=4, val_fraction=0.0)
    data.prepare_data()
    data.setup("fit")
    return data


def test_the_loader_gives_weights_of_mean_one(table):
    data = opened(table([1, 2, 3, 4, 5, 6, 7, 0, 9, 9, 9, 9], "w"), weight="w")
    found = {}
    for batch in data.train_dataloader():
        assert batch.weights is not None
        found |= dict(zip(batch.indices.tolist(), batch.weights.tolist(), strict=True))
    assert found == {number: pytest.approx(weight / 3.5) for number, weight in enumerate([1, 2, 3, 4, 5, 6, 7, 0])}
    assert next(iter(data.loader("test"))).weights is None


def test_a_column_that_is_not_named_is_none(table):
    assert next(iter(opened(table(range(12))).train_dataloader())).weights is None


@pytest.mark.parametrize(("cell", "shown"), [("-1", "'-1'"), ("nan", "'nan'"), ("much", "'much'"), ("inf", "'inf'")])
def test_what_is_no_weight_is_refused_with_its_row(table, cell, shown):
    with pytest.raises(ValueError, match=f"has the weight {shown} in the column 'weight' in row 4, expected"):
        opened(table([1, 1, cell, *[1] * 9]), weight="weight")


def test_weights_of_nothing_are_refused(table):
    with pytest.raises(ValueError, match="has no weight in row 4"):
        opened(table([1, 1, "", *[1] * 9]), weight="weight")
    with pytest.raises(ValueError, match="all 8 training images have the weight 0"):
        opened(table([0] * 8 + [1] * 4), weight="weight").train_dataloader()


def test_on_the_command_line(table, tmp_path, capsys):
    file, run = table([1] * 4 + [5] * 8), tmp_path / "run"
    common = ["--data.table", str(file), "--data.columns.weight", "weight", "--data.image_size", "32"]
    common += ["--data.batch_size", "4", "--data.val_fraction", "0"]
    options = [*common, "--model.backbone.name", "resnet10t", "--tracker", "none", "--trainer.accelerator", "cpu"]
    cpu = ["--trainer.max_epochs", "1", "--random_weights", "false"]
    assert main(["transfer", "-c", "linear_probe", *options, *cpu, "--out", str(run)]) == 0
    table([1] * 3 + [5] * 9)
    capsys.readouterr()
    assert main(["transfer", "--resume", str(run), "--trainer.max_epochs", "2"]) == 2
    assert "targets, weights or covariates of the 12 images have changed" in capsys.readouterr().err
    assert main(["pretrain", "-c", "simclr", *options, "--trainer.max_epochs", "1", "--out", str(tmp_path / "p")]) == 2
    assert "data.columns.weight is for the loss of a transfer, and SimCLR takes no weights" in capsys.readouterr().err
    assert not (tmp_path / "p").exists()
    for command in (["evaluate"], ["embed", "--out", str(tmp_path / "e.csv")]):
        assert main([*command, "--weights", str(run / "backbone.safetensors"), *common]) == 2
        assert "data.columns.weight is for the loss of a transfer" in capsys.readouterr().err
