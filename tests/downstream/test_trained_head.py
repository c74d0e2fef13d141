"""Fine-tuning that begins with the head of a probe (`head_weights`)."""

from __future__ import annotations

import shutil

import pytest
import torch
from lightning.pytorch import Trainer
from PIL import Image

import ssl_toolkit
from downstream.base.pooled_head import pooled_head
from downstream.base.standardize import Standardize
from downstream.base.trained_head import fold_standardization, read_trained_head
from downstream.classification import Classification
from downstream.ordinal import CoralHead
from downstream.sequence import RecurrentHead, SequenceClassification
from ssl_toolkit.cli import main
from ssl_toolkit.data import ImageData
from ssl_toolkit.modules import Backbone
from ssl_toolkit.optim import AdamW
from ssl_toolkit.schedule import Cosine
from ssl_toolkit.weights import WeightsError, save_backbone

DATA = {"source": "procedural", "max_images": 60, "image_size": 32, "batch_size": 16, "test_fraction": 0.2}


def some_head(kind):
    """A head with statistics of some training."""
    torch.manual_seed(0)
    head = pooled_head("mlp" if kind == "mlp" else "linear", 6, 1 if kind == "coral" else 3, 5, 0.1)
    head = CoralHead(head, 4) if kind == "coral" else head
    head(torch.randn(20, 6))
    return head.eval()


@pytest.mark.parametrize("kind", ["linear", "mlp", "coral"])
def test_the_folded_head_computes_the_same(kind):
    head, standardize = some_head(kind), Standardize(6)
    features = 3 + torch.randn(50, 6) * torch.tensor([0.01, 0.1, 1.0, 2.0, 10.0, 1.0])
    standardize(features)
    expected = head(standardize.eval()(features))
    fold_standardization(head, standardize.mean, standardize.variance)
    torch.testing.assert_close(head(features), expected, rtol=1e-4, atol=1e-4)


def recipe(weights, head="linear", **arguments):
    arguments = {"weights": str(weights), "head": head, "hidden": 8, **arguments}
    arguments |= {"optimizer": {"class_path": "AdamW"}, "schedule": {"class_path": "Cosine"}}
    return {"model": {"class_path": "Classification", "init_args": arguments}, "tracker": "none"}


def transferred(out, recipe, data=DATA, **trainer):
    settings = {"trainer.accelerator": "cpu", "trainer.max_epochs": 1, "trainer.precision": "32", **trainer}
    return ssl_toolkit.transfer(recipe, data=data, out=out, overrides=settings)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("weights") / "backbone.safetensors"
    save_backbone(file, Backbone("resnet10t", kwargs={"channels": (8, 16, 32, 64)}))
    return file


@pytest.fixture(scope="module")
def probes(tmp_path_factory, weights):
    """The model file of a probe, by its head."""
    folder = tmp_path_factory.mktemp("probes")
    runs = {
        head: transferred(folder / head, recipe(weights, head, freeze_backbone=True), random_weights=False)
        for head in ("linear", "mlp")
    }
    return {head: run.folder / "model.safetensors" for head, run in runs.items()}


@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_fine_tuning_begins_where_the_probe_ended(head, weights, probes, tmp_path):

    task, data = make_task(weights=str(weights), head=head, hidden=8, head_weights=str(probes[head])), images()
    started, probe = outputs(task, data), read_trained_head(str(probes[head]))
    other = make_task(weights=str(weights), head=head, hidden=8, freeze_backbone=True)
    expected = outputs(other, data, probe.tensors)
    torch.testing.assert_close(started, expected, rtol=1e-3, atol=1e-4)


def images(**arguments):
    data = ImageData(**{**DATA, **arguments})
    data.setup("fit")
    return data


def outputs(task, data, tensors=None):
    """Scores of the test images before any step, or with the tensors of a model file."""
    trainer = Trainer(logger=False, accelerator="cpu", enable_checkpointing=False, enable_model_summary=False)
    task._trainer, trainer.datamodule = trainer, data
    task.setup("fit")
    if tensors is not None:
        task.load_state_dict(tensors)
    task.eval()
    with torch.no_grad():
        return torch.cat([task.predict(batch) for batch in data.loader("test")]).log()


def make_task(cls=Classification, **arguments):
    return cls(optimizer=AdamW(), schedule=Cosine(), **arguments)


# ---- what is refused


@pytest.mark.parametrize(
    ("cls", "arguments", "message"),
    [
        (Classification, {"freeze_backbone": True}, "head_weights is for fine-tuning after a probe"),
        (Classification, {"weights": None}, "head_weights needs model.weights"),
        (SequenceClassification, {"head": RecurrentHead()}, "head_weights is not for SequenceClassification"),
        (Classification, {"head_weights": "backbone"}, "is of a backbone without a head"),
        (Classification, {"head_weights": "no.safetensors"}, "no.safetensors"),
    ],
)
def test_mistakes_are_one_line(cls, arguments, message, weights, probes):
    given = {"weights": str(weights), "head_weights": str(probes["linear"]), **arguments}
    if given["head_weights"] == "backbone":
        given["head_weights"] = str(weights)
    if given["weights"] is None:
        given["backbone"] = Backbone("test_resnet")
    with pytest.raises(ValueError, match=message) as caught:
        make_task(cls, **given)
    assert "\n" not in str(caught.value)


def test_a_head_of_other_features_is_refused(probes, tmp_path):
    torch.manual_seed(1)
    file = tmp_path / "backbone.safetensors"
    save_backbone(file, Backbone("resnet10t", kwargs={"channels": (8, 16, 32, 64)}))
    with pytest.raises(WeightsError, match=r"was trained on other features: its backbone is not that of model.weights"):
        make_task(weights=str(file), head_weights=str(probes["linear"]))


def test_a_head_of_other_layers_or_classes_is_refused(weights, probes, monkeypatch):
    task = make_task(weights=str(weights), head="mlp", hidden=8, head_weights=str(probes["linear"]))
    with pytest.raises(WeightsError, match=r"has other layers than that of the run .- file, \+ run.\n\+ head.0.weight"):
        outputs(task, images())
    task, data = make_task(weights=str(weights), head_weights=str(probes["linear"])), images()
    names = ["ship", *data.class_names[1:]]
    monkeypatch.setattr(ImageData, "class_names", property(lambda _: names))
    with pytest.raises(WeightsError, match=r"is for classes bird, .* and 2 more; the data have classes ship, "):
        outputs(task, data)


@pytest.mark.slow
def test_a_run_predicts_without_the_file_that_its_head_began_with(weights, probes, tmp_path):
    began = shutil.copy(probes["linear"], tmp_path / "began.safetensors")
    run = transferred(tmp_path / "run", recipe(weights, head_weights=str(began)))
    began.unlink()
    images = tmp_path / "images"
    images.mkdir()
    Image.new("RGB", (32, 32)).save(images / "a.png")
    arguments = ["predict", run.folder, "--data.path", images, "--out", tmp_path / "table.csv", "--device", "cpu"]
    assert main([*map(str, arguments)]) == 0
    assert (tmp_path / "table.csv").read_text().startswith("name,class,probability")
