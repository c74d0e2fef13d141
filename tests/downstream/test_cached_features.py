"""Training on cached features is training through the frozen backbone, bit for bit."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from downstream.classification import Classification
from downstream.sequence import RecurrentHead, SequenceClassification
from ssl_toolkit.augment import CenterView, RandomView
from ssl_toolkit.cli.train import train
from ssl_toolkit.data import ImageData
from ssl_toolkit.evaluation.embed import embed
from ssl_toolkit.modules import Backbone
from ssl_toolkit.optim import AdamW
from ssl_toolkit.regularization import SAM, CutMix, Dropout, InputNoise, LabelSmoothing, MixUp
from ssl_toolkit.run_folder import newest_checkpoint, step_of
from ssl_toolkit.schedule import Cosine
from ssl_toolkit.tracking.metrics_csv import last_values, read_metrics
from ssl_toolkit.weights import save_backbone
from train_in_processes import train_together

# 48 + 16 + 16 images, in batches of 16
DATA = {
    "source": "procedural", "max_images": 80, "image_size": 32, "batch_size": 16, "val_fraction": 0.2,
    "test_fraction": 0.2,
}  # fmt: skip


def recipe(cached, data=None, task=None, **settings):
    arguments = {
        "backbone": {"name": "resnet10t", "kwargs": {"channels": [8, 8, 16, 16], "drop_path_rate": 0.2}},
        "freeze_backbone": True, "cache_features": cached, "head": "mlp", "hidden": 8, "dropout": 0.1,
        "optimizer": {"class_path": "ssl_toolkit.optim.AdamW", "init_args": {"lr": 0.01}},
        "schedule": {"class_path": "ssl_toolkit.schedule.Cosine"},
    }  # fmt: skip
    return {
        "model": {
            "class_path": "downstream.classification.Classification", "init_args": {**arguments, **(task or {})},
        },
        "data": data or DATA, "trainer": {"accelerator": "cpu", "max_epochs": 3}, "tracker": "none",
        "checkpoint": {"every_n_steps": 4}, **settings,
    }  # fmt: skip


def run(out, cached, **settings):
    return train("transfer", ["-c", yaml.safe_dump(recipe(cached, **settings)), "--out", str(out)], quietly=True)


def state(folder):
    return torch.load(newest_checkpoint(folder), weights_only=True)


def assert_same(first, second):
    one, two = state(first), state(second)
    assert one["global_step"] == two["global_step"]
    assert one["state_dict"].keys() == two["state_dict"].keys()
    for name, each in one["state_dict"].items():
        assert torch.equal(each, two["state_dict"][name]), name
    metrics = [read_metrics(each) for each in (first, second)]
    for name in metrics[0]:
        if name.startswith(("val/", "test/", "train/loss", "train/top")):
            np.testing.assert_array_equal(metrics[0][name], metrics[1][name], name)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Without and with cached features."""
    folder = tmp_path_factory.mktemp("runs")
    return [run(folder / str(cached), cached) for cached in (False, True)]


def test_what_is_learned_is_the_same(runs):
    assert_same(*runs)
    assert (runs[1] / "views.png").read_bytes()[:4] == (runs[0] / "views.png").read_bytes()[:4]


def test_a_run_that_was_stopped_goes_on_to_the_same_end(runs, tmp_path):
    stopped = shutil.copytree(runs[1], tmp_path / "run")
    newest_checkpoint(stopped).unlink()
    assert step_of(newest_checkpoint(stopped)) == 8
    train("transfer", ["--resume", str(stopped)], quietly=True)
    assert_same(runs[0], stopped)


def test_each_image_is_read_once_for_training_and_once_for_each_validation_set(tmp_path, monkeypatch):
    seen = []
    forward = Backbone.forward
    monkeypatch.setattr(
        Backbone, "forward", lambda self, x, **kwargs: seen.append(len(x)) or forward(self, x, **kwargs)
    )
    run(tmp_path / "run", True)
    assert seen == [16] * 6  # 3 of training, 1 of validation, 1 of the test, for which 1 finds the temperature


@pytest.mark.slow
def test_validation_images_of_their_own_folder(tmp_path):
    generator = np.random.default_rng(0)
    for name, num in (("train", 16), ("val", 8), ("test", 8)):
        for number in range(num):
            file = tmp_path / name / f"{'ab'[number % 2]}/{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(file)
    (tmp_path / "train" / "a" / "0.png").write_bytes(b"no image")
    data = {
        "path": str(tmp_path / "train"), "val_path": str(tmp_path / "val"), "test_path": str(tmp_path / "test"),
        "image_size": 32, "batch_size": 16, "cache": "none",
    }  # fmt: skip
    folders = [run(tmp_path / str(cached), cached, data=data) for cached in (False, True)]
    assert_same(*folders)


@pytest.mark.slow
def test_penalties_smoothing_and_the_mean_of_weights_are_the_same(tmp_path):
    regularizers = [
        {"class_path": f"ssl_toolkit.regularization.{name}", "init_args": arguments}
        for name, arguments in (("L2", {"strength": 0.1}), ("LabelSmoothing", {}), ("SAM", {}))
    ]
    settings = {"task": {"regularizers": regularizers}, "average": {"kind": "swa", "start": 0.3}}
    folders = [run(tmp_path / str(cached), cached, **settings) for cached in (False, True)]
    assert_same(*folders)


def together(out, cached):
    return train_together("transfer", ["-c", yaml.safe_dump(recipe(cached)), "--out", out])


@pytest.mark.slow
def test_two_processes_are_the_same(tmp_path, run_processes):
    for cached in (False, True):
        run_processes(together, 2, str(tmp_path / str(cached)), cached, timeout=180.0)
    assert_same(tmp_path / "False", tmp_path / "True")
    assert last_values(tmp_path / "True")["test/top1"] == last_values(tmp_path / "False")["test/top1"]


def make(cls=Classification, **arguments):
    arguments = {"backbone": Backbone("test_resnet"), "freeze_backbone": True, "cache_features": True, **arguments}
    return cls(optimizer=AdamW(), schedule=Cosine(), **arguments)


class OwnWay(SequenceClassification):
    """Nothing is known of what its head gets."""

    def encode(self, batch, keys):
        return super().encode(batch, keys)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"freeze_backbone": False}, "set freeze_backbone"),
        ({"augmentation": RandomView(32)}, "but model.augmentation is RandomView: set it to null"),
        *(
            ({"regularizers": [each]}, f"but {type(each).__name__} of model.regularizers changes images")
            for each in (MixUp(), CutMix(), InputNoise(0.1), Dropout(0.1, "layer4"))
        ),
        (
            {"cls": OwnWay, "head": RecurrentHead()},
            "knows how images and sequences are encoded, and OwnWay has another way",
        ),
        (
            {"cls": SequenceClassification, "head": RecurrentHead(), "feature_store": "folder"},
            "feature_store keeps features of single images, not of sequences",
        ),
    ],
)
def test_what_would_not_be_the_same_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message) as caught:
        make(**arguments).check()
    assert "\n" not in str(caught.value)


def test_what_is_the_same_is_accepted():
    make(augmentation=CenterView(32), regularizers=[LabelSmoothing(), SAM()]).check()


def test_large_features_are_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("downstream.base.cached_features._SAID_FROM", 1)
    run(tmp_path / "run", True, random_weights=False)
    assert "cached features: 64 images x 16 x 4 bytes, 0.0 GB of memory in each process" in capsys.readouterr().out


def seen_by_the_backbone(monkeypatch):
    """The sizes of the batches that backbones have computed since then."""
    seen = []
    forward = Backbone.forward
    monkeypatch.setattr(
        Backbone, "forward", lambda self, x, **kwargs: seen.append(len(x)) or forward(self, x, **kwargs)
    )
    return seen


@pytest.fixture
def weights(tmp_path):
    backbone = Backbone("resnet10t", kwargs={"channels": [8, 8, 16, 16], "drop_path_rate": 0.2})
    save_backbone(tmp_path / "backbone.safetensors", backbone, {})
    return str(tmp_path / "backbone.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("command", ["transfer", "embed"])
def test_features_in_the_store_are_not_computed_again(command, weights, tmp_path, monkeypatch):
    store = str(tmp_path / "store")
    start = {"weights": weights, "backbone": None}
    run(tmp_path / "without", True, task=start, random_weights=False)
    if command == "transfer":
        run(tmp_path / "first", True, task={**start, "feature_store": store}, random_weights=False)
        assert_same(tmp_path / "without", tmp_path / "first")
    else:
        embed(weights, ImageData(**DATA), tmp_path / "features.npz", precision="32", device="cpu", feature_store=store)
    seen = seen_by_the_backbone(monkeypatch)
    run(tmp_path / "run", True, task={**start, "feature_store": store}, random_weights=False)
    assert_same(tmp_path / "without", tmp_path / "run")
    assert seen == [16] * 2  # of the test, of which `test_each_image_is_read_once...` tells
    # other batches are other sums
    smaller = {**DATA, "batch_size": 8}
    run(tmp_path / "other", True, task={**start, "feature_store": store}, data=smaller, random_weights=False)
    assert len(seen) > 2 + 48 // 8


def test_what_is_found_is_what_an_evaluation_measures(weights, tmp_path, monkeypatch):
    """The other way round: an evaluation finds what a training has kept."""
    store = str(tmp_path / "store")
    run(tmp_path / "run", True, task={"weights": weights, "backbone": None, "feature_store": store})
    data = {**DATA, "image_size": 32}
    expected = embed(weights, ImageData(**data), tmp_path / "expected.npz", precision="32", device="cpu")
    seen = seen_by_the_backbone(monkeypatch)
    found = embed(weights, ImageData(**data), tmp_path / "found.npz", precision="32", device="cpu", feature_store=store)
    assert seen == [16]  # the test images
    with np.load(expected) as one, np.load(found) as other:
        for name in ("name", "split", "index", "label", "features"):
            np.testing.assert_array_equal(one[name], other[name])


@pytest.mark.slow
def test_a_damaged_store_is_named(weights, tmp_path):
    store = tmp_path / "store"
    task = {"weights": weights, "backbone": None, "feature_store": str(store)}
    run(tmp_path / "first", True, task=task)
    for file in store.glob("*/pooled.npy"):
        file.write_bytes(b"no matrix")
    with pytest.raises(ValueError, match="is damaged"):
        run(tmp_path / "second", True, task=task)


@pytest.mark.parametrize(
    ("task", "trainer", "message"),
    [
        ({"cache_features": False}, {}, "set cache_features, too"),
        ({"memory_format": "contiguous"}, {}, "memory_format channels_last"),
        ({}, {"precision": "64-true"}, "but trainer.precision is 64-true"),
    ],
)
def test_what_no_evaluation_computes_is_not_stored(task, trainer, message, tmp_path):
    settings = {"accelerator": "cpu", "max_epochs": 1, **trainer}
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "run", True, task={"feature_store": str(tmp_path / "store"), **task}, trainer=settings)


def together_with_store(out, store):
    cut = recipe(True, task={"feature_store": store})
    return train_together("transfer", ["-c", yaml.safe_dump(cut), "--out", out])


@pytest.mark.slow
def test_two_processes_find_what_two_have_kept(tmp_path, run_processes, monkeypatch):
    for name in ("first", "second"):
        run_processes(together_with_store, 2, str(tmp_path / name), str(tmp_path / "store"), timeout=180.0)
    assert_same(tmp_path / "first", tmp_path / "second")
    assert len(list((tmp_path / "store").iterdir())) == 2  # training and validation
    run(tmp_path / "alone", True, task={"feature_store": str(tmp_path / "store")})
    assert len(list((tmp_path / "store").iterdir())) == 4  # one process sums other batches
