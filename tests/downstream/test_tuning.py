"""Tuning a few of a backbone's parameters (`tuned`)."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch import nn

from downstream.base.tuning import train_only
from downstream.classification import Classification
from ssl_toolkit.data import ImageData
from ssl_toolkit.modules import Backbone
from ssl_toolkit.optim import SGD, AdamW
from ssl_toolkit.schedule import Constant, Cosine

pytestmark = [
    pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning"),
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning"),
]
KWARGS = {"channels": (8, 8, 16, 16)}


def small(**arguments):
    torch.manual_seed(0)
    # not as timm begins, with a scale of 0 at the end of each block, behind which nothing gets a gradient
    return Backbone("resnet10t", kwargs={**KWARGS, "zero_init_last": False}, **arguments)


@pytest.mark.parametrize(("tuned", "ends"), [("norms", ("weight", "bias")), ("biases", ("bias",))])
def test_only_these_are_trained(tuned, ends):
    task = Classification(backbone=small(), optimizer=AdamW(lr=0.01), schedule=Cosine(), tuned=tuned)
    before = {name: each.clone() for name, each in task.backbone.named_parameters()}
    trainer = Trainer(
        max_steps=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, limit_val_batches=0,
    )  # fmt: skip
    data = ImageData(source="procedural", max_images=40, image_size=32, batch_size=16, val_fraction=0)
    trainer.fit(task, datamodule=data)
    after = dict(task.backbone.named_parameters())
    # the ResNets of timm have no biases but those of their normalisations, which are the tensors of one dimension
    expected = {name for name, each in before.items() if each.ndim == 1 and name.endswith(ends)}
    assert {name for name, each in after.items() if not torch.equal(each, before[name])} == expected
    assert len(expected) > 10
    assert all(each.requires_grad for each in task.head.parameters())


def test_the_biases_of_convolutions_are_biases():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, bias=False))
    train_only(network, "biases")
    assert {name for name, each in network.named_parameters() if each.requires_grad} == {"0.bias", "1.bias"}
    network.requires_grad_(True)
    train_only(network, "norms")
    assert {name for name, each in network.named_parameters() if each.requires_grad} == {"1.weight", "1.bias"}
    network.requires_grad_(True)
    train_only(network, "all")
    assert all(each.requires_grad for each in network.parameters())


class FirstMoves(Callback):
    """Notes after how many steps each matrix is no longer what it was at first."""

    def on_train_start(self, trainer, pl_module):
        self.before = {name: each.clone() for name, each in pl_module.named_parameters() if each.ndim > 1}
        self.steps = {}

    def on_train_batch_end(self, trainer, pl_module, *_):
        for name, parameter in pl_module.named_parameters():
            if parameter.ndim > 1 and not torch.equal(parameter, self.before[name]):
                self.steps.setdefault(name, trainer.global_step)


@pytest.mark.parametrize("optimizer", [AdamW(lr=0.01, weight_decay=0.1), SGD(lr=0.01, weight_decay=0.1)])
def test_stages_are_unfrozen_one_after_the_other(optimizer):
    task = Classification(backbone=small(), optimizer=optimizer, schedule=Constant(), unfreeze_percent=50)
    moves = FirstMoves()
    trainer = Trainer(
        max_steps=20, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, limit_val_batches=0, callbacks=[moves],
    )  # fmt: skip
    data = ImageData(source="procedural", max_images=20, image_size=32, batch_size=4, val_fraction=0)
    trainer.fit(task, datamodule=data)
    by_stage = {}
    for name, step in moves.steps.items():
        by_stage.setdefault(name.split(".")[2] if name.startswith("backbone") else "head", set()).add(step)
    # half of twenty steps in five parts; the first step that moves a stage is the one after its begin
    assert by_stage == {"head": {1}, "layer4": {3}, "layer3": {5}, "layer2": {7}, "layer1": {9}, "conv1": {11}}


def test_no_parameter_begins_late_by_default():
    task = Classification(backbone=small(), optimizer=AdamW(), schedule=Cosine(), num_classes=3)
    assert {task.lr_begin(name) for name, _ in task.named_parameters()} == {0.0}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tuned": "norms", "norm": "none"}, "tuned is norms, but the backbone has none"),
        ({"tuned": "biases", "freeze_backbone": True}, "tuned is biases, but freeze_backbone leaves nothing"),
        ({"unfreeze_percent": 100}, "unfreeze_percent is 100, expected at least 0 and less than 100"),
        ({"unfreeze_percent": 50, "freeze_backbone": True}, "unfreeze_percent is 50, but freeze_backbone"),
    ],
)
def test_what_leaves_nothing_is_refused(arguments, message):
    backbone = small(norm=arguments.pop("norm", "own"))
    with pytest.raises(ValueError, match=message):
        Classification(backbone=backbone, optimizer=AdamW(), schedule=Cosine(), **arguments)
