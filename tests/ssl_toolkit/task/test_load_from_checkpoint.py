"""A task is built with the weights of a run's checkpoint, outside of a trainer; nothing is loaded in part."""

import pytest
import torch

from downstream.classification import Classification
from downstream.sequence import RecurrentHead, SequenceClassification, TransformerHead
from pretext.byol import BYOL
from pretext.simclr import SimCLR
from ssl_toolkit.augment import RandomView
from ssl_toolkit.cli.train import train
from ssl_toolkit.modules.backbone import Backbone
from ssl_toolkit.optim import AdamW
from ssl_toolkit.run_folder import newest_checkpoint
from ssl_toolkit.schedule import Cosine
from ssl_toolkit.weights import load_backbone

NARROW = {"channels": [8, 8, 16, 16]}
SMALL = ["--data.source", "procedural", "--data.max_images", "90", "--data.image_size", "32", "--data.batch_size", "16"]
SMALL += ["--trainer.max_epochs", "1", "--trainer.accelerator", "cpu", "--tracker", "none", "--model.backbone.name"]
SMALL += ["resnet10t", "--model.backbone.kwargs", "{channels: [8, 8, 16, 16]}"]


def parts(width=8):
    backbone = Backbone("resnet10t", kwargs={"channels": [width, 8, 16, 16]})
    return {"backbone": backbone, "optimizer": AdamW(lr=1e-3), "schedule": Cosine()}


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "simclr"
    options = ["-c", "simclr", *SMALL, "--model.view.size", "24", "--model.projector_widths", "[16, 8]"]
    return train("pretrain", [*options, "--trainer.precision", "32-true", "--out", str(run)], quietly=True)


@pytest.fixture(scope="module", params=["linear", "mlp"])
def transferred(request, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "probe"
    options = ["-c", "linear_probe", *SMALL, "--model.head", request.param, "--out", str(run)]
    return train("transfer", options, quietly=True), request.param


def test_a_pretext_task(pretrained):
    task = SimCLR.load_from_checkpoint(
        newest_checkpoint(pretrained), view=RandomView(24), projector_widths=(16, 8), weights_only=True, **parts()
    )
    exported = load_backbone(pretrained / "backbone.safetensors").state_dict()
    assert all(torch.equal(value, exported[name]) for name, value in task.backbone.state_dict().items())
    saved = torch.load(newest_checkpoint(pretrained), weights_only=True)["state_dict"]
    assert all(torch.equal(value, saved[name]) for name, value in task.state_dict().items())
    assert task.progress.step == 5


def test_a_downstream_task_gets_its_head_from_the_checkpoint(transferred):
    run, head = transferred
    checkpoint = newest_checkpoint(run)
    task = Classification.load_from_checkpoint(checkpoint, head=head, freeze_backbone=True, image_size=32, **parts())
    assert task.num_classes == 10
    saved = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert saved.keys() == task.state_dict().keys()
    assert all(torch.equal(value, saved[name]) for name, value in task.state_dict().items())


@pytest.mark.parametrize("head", [RecurrentHead, TransformerHead])
def test_a_head_of_sequences_says_its_classes_last(head, tmp_path):
    torch.manual_seed(0)
    trained = SequenceClassification(head=head(), num_classes=7, image_size=32, **parts())
    trained._build_head()
    plain = {"global_step": 0, "loops": {}, "pytorch-lightning_version": "2.6.6"}
    torch.save({"state_dict": trained.state_dict(), **plain}, tmp_path / "sequence.ckpt")
    task = SequenceClassification.load_from_checkpoint(
        tmp_path / "sequence.ckpt", head=head(), image_size=32, **parts()
    )
    assert task.num_classes == 7
    assert all(torch.equal(value, trained.state_dict()[name]) for name, value in task.state_dict().items())


def test_what_is_refused(pretrained, tmp_path):
    checkpoint = newest_checkpoint(pretrained)
    views = {"view": RandomView(24), "projector_widths": (16, 8)}
    cases = [
        (
            SimCLR,
            checkpoint,
            views,
            f"needs backbone, optimizer, schedule, as the run had them ({pretrained}/config.yaml)",
        ),
        (
            SimCLR,
            checkpoint,
            views | parts(width=12),
            "the first is backbone.model.layer1.0.conv1.weight ([8, 64, 3, 3] in the",
        ),
        (BYOL, checkpoint, views | {"predictor_width": 8} | parts(), "is of another network than this BYOL: "),
        (SimCLR, checkpoint, views | parts() | {"colour": "none"}, "SimCLR takes no argument 'colour'"),
        (SimCLR, checkpoint, views | parts() | {"strict": False}, "leave out strict and weights_only"),
        (SimCLR, checkpoint, views | parts() | {"weights_only": False}, "leave out strict and weights_only"),
        (SimCLR, checkpoint, views | parts() | {"backbone": {"name": "resnet18"}}, "backbone must be a network: "),
        (SimCLR, tmp_path / "none.ckpt", views | parts(), "there is no checkpoint"),
        (SimCLR, pretrained / "backbone.safetensors", views | parts(), "is no checkpoint of a run"),
    ]
    for cls, path, arguments, expected in cases:
        with pytest.raises(ValueError) as refused:  # noqa: PT011
            cls.load_from_checkpoint(path, **arguments)
        assert expected in str(refused.value)
        assert "\n" not in str(refused.value)
