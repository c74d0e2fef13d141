"""Tuning a few of a backbone's parameters (`tuned`)."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn

from downstream.base.tuning import train_only
from downstream.classification import Classification
from ssl_toolkit.data import ImageData
from ssl_toolkit.modules import Backbone
from ssl_toolkit.optim import AdamW
from ssl_toolkit.schedule import Cosine

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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tuned": "norms", "norm": "none"}, "tuned is norms, but the backbone has none"),
        ({"tuned": "biases", "freeze_backbone": True}, "tuned is biases, but freeze_backbone leaves nothing"),
    ],
)
def test_what_leaves_nothing_is_refused(arguments, message):
    backbone = small(norm=arguments.pop("norm", "own"))
    with pytest.raises(ValueError, match=message):
        Classification(backbone=backbone, optimizer=AdamW(), schedule=Cosine(), **arguments)
