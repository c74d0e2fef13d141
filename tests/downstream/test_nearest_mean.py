"""The head that trains nothing: class means of the features of a frozen backbone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer

import ssl_toolkit
from downstream.base.nearest_mean import NearestMeanHead, best_scale, squared_distances
from downstream.base.standardize import EPS, Standardize
from downstream.classification import Classification
from ssl_toolkit.augment import CenterView, RandomView
from ssl_toolkit.cli import main
from ssl_toolkit.cli.predict import open_trained, trained_task
from ssl_toolkit.data import ImageData
from ssl_toolkit.evaluation import extract_features
from ssl_toolkit.modules import Backbone
from ssl_toolkit.optim import AdamW
from ssl_toolkit.schedule import Cosine
from ssl_toolkit.weights import load_backbone, save_backbone
from train_in_processes import train_together

DATA = {"source": "procedural", "max_images": 90, "image_size": 32, "batch_size": 16, "test_fraction": 0.3}
NAMES = ["a", "b", "c"]


def blobs(num=60, width=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(num) % 3
    scale = torch.tensor([1.0, 100.0, 0.01, 1.0, 1.0])[:width]
    features = (torch.randn(num, width, generator=generator) + 2 * labels.unsqueeze(1)) * scale + 1000 * scale
    return features, labels


def fitted(features, labels):
    standardize, head = Standardize(features.shape[1]), NearestMeanHead(features.shape[1], 3)
    head.fit(standardize, features, labels, NAMES)
    return standardize.eval(), head


def test_it_says_what_scikit_learn_says():
    neighbors = pytest.importorskip("sklearn.neighbors")
    (features, labels), (other, _) = blobs(), blobs(seed=1)
    standardize, head = fitted(features, labels)
    exact = features.double().numpy()
    mean, std = exact.mean(axis=0), np.sqrt(exact.var(axis=0) + EPS)
    reference = neighbors.NearestCentroid().fit((exact - mean) / std, labels.numpy())
    np.testing.assert_allclose(head.means.numpy(), reference.centroids_, rtol=1e-4, atol=1e-4)
    expected = reference.predict((other.double().numpy() - mean) / std)
    assert head(standardize(other)).argmax(dim=1).tolist() == expected.tolist()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_changes_nothing(dtype):
    features, labels = blobs()
    standardize, head = fitted(features, labels)
    plain = head(standardize(features))
    with torch.autocast("cpu", dtype=dtype):
        mixed = head(standardize(features))
    assert mixed.dtype == torch.float32
    assert torch.equal(mixed, plain)


def test_the_scale_is_the_most_likely_one_without_each_image():
    features, labels = blobs(30)
    features = features.double()[:, :2] / 100
    means = torch.stack([features[labels == each].mean(dim=0) for each in range(3)])
    found = best_scale(squared_distances(features, means), labels, labels.bincount())
    left_out = torch.zeros(len(features), 3, dtype=torch.float64)
    for place in range(len(features)):
        kept = torch.arange(len(features)) != place
        own = [features[kept & (labels == each)].mean(dim=0) for each in range(3)]
        left_out[place] = torch.stack([(features[place] - each).square().sum() for each in own])

    def loss(scale):
        return torch.nn.functional.cross_entropy(-scale * left_out, labels)

    assert loss(found) <= min(loss(found * 1.01), loss(found / 1.01))


def test_a_scale_that_nothing_settles_is_a_number():
    distances, labels = torch.rand(3, 3, dtype=torch.float64), torch.arange(3)
    assert best_scale(distances, labels, torch.ones(3, dtype=torch.int64)) == pytest.approx(1 / float(distances.mean()))
    apart = 100 * (1 - torch.eye(3, dtype=torch.float64))[labels.repeat(2)]
    assert np.isfinite(best_scale(apart, labels.repeat(2), torch.full((3,), 2)))


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("weights") / "backbone.safetensors"
    save_backbone(file, Backbone("resnet10t", kwargs={"channels": (8, 16, 32, 64)}))
    return file


def recipe(weights):
    task = {"weights": str(weights), "head": "nearest_mean", "freeze_backbone": True}
    task |= {"optimizer": {"class_path": "AdamW"}, "schedule": {"class_path": "Cosine"}}
    model = {"class_path": "downstream.classification.Classification", "init_args": task}
    return {"model": model, "tracker": "none"}


def run(out, weights, **settings):
    overrides = {"trainer.accelerator": "cpu", "trainer.max_epochs": 9, "random_weights": False, **settings}
    return ssl_toolkit.transfer(recipe(weights), data=DATA, out=out, overrides=overrides)


def naive(weights):
    """Test labels and predictions, and the names of all images, by NumPy."""
    data, parts = ImageData(**DATA), {}
    data.setup()
    for split in ("train", "test"):
        found = extract_features(load_backbone(weights), data.loader(split), CenterView(32), precision="32")
        parts[split] = found.features["pooled"].double().numpy(), found.labels.numpy()
    features, labels = parts["train"]
    mean, std = features.mean(axis=0), np.sqrt(features.var(axis=0) + EPS)
    means = np.stack([((features[labels == each] - mean) / std).mean(axis=0) for each in range(10)])
    tested = (parts["test"][0] - mean) / std
    return parts["test"][1], np.square(tested[:, None] - means).sum(axis=2).argmin(axis=1)


def test_a_run_computes_tests_and_predicts(weights, tmp_path):
    done = run(tmp_path / "run", weights, random_weights=True)
    labels, predicted = naive(weights)
    assert done.figures["test/top1"] == pytest.approx((labels == predicted).mean())
    assert done.figures["step"] == 0
    assert 0 <= done.figures["test/random_weights_top1"] <= 1
    assert done.figures["test/loss"] < 1.1 * np.log(10)
    task, header = trained_task(open_trained(str(done.folder)))
    data = ImageData(**DATA)
    found = torch.cat([task.predict(batch) for batch in data.loader("test")])
    assert header["class_names"] == data.class_names
    assert found.argmax(dim=1).tolist() == predicted.tolist()


def test_in_bfloat16_the_means_are_those_of_float32(weights, tmp_path):
    plain = run(tmp_path / "32", weights)
    mixed = run(tmp_path / "bf16", weights, **{"trainer.precision": "bf16-mixed"})
    assert mixed.figures["test/top1"] == pytest.approx(plain.figures["test/top1"], abs=0.15)
    assert mixed.figures["test/loss"] == pytest.approx(plain.figures["test/loss"], rel=0.1)


def together(weights, out):
    import yaml

    settings = {**recipe(weights), "data": DATA, "trainer": {"accelerator": "cpu"}, "random_weights": False}
    return train_together("transfer", ["-c", yaml.safe_dump(settings), "--out", out])


@pytest.mark.slow
def test_two_processes_compute_what_one_does(weights, tmp_path, run_processes):
    from ssl_toolkit.tracking.metrics_csv import last_values
    from ssl_toolkit.weights.model import read_model_header
    from ssl_toolkit.weights.reading import read_tensors

    run_processes(together, 2, weights, str(tmp_path / "two"), timeout=120.0)
    together(weights, str(tmp_path / "one"))
    found = []
    for name in ("one", "two"):
        file = tmp_path / name / "model.safetensors"
        found.append(read_tensors(file, read_model_header(file)))
    for name, each in found[0].items():
        torch.testing.assert_close(found[1][name], each, rtol=1e-5, atol=1e-5)
    one, two = (last_values(tmp_path / name) for name in ("one", "two"))
    assert one["test/top1"] == two["test/top1"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"freeze_backbone": False}, "needs a frozen backbone: set freeze_backbone"),
        ({"dropout": 0.1}, "no training that dropout would change"),
        ({"focal_gamma": 2.0}, "no training that focal_gamma would change"),
        ({"augmentation": RandomView(32)}, "but model.augmentation is RandomView: set it to null"),
        ({"head_weights": "x", "weights": "y"}, "head_weights is not for Classification with a head that"),
    ],
)
def test_what_belongs_to_a_training_is_refused(arguments, message):
    given = {"head": "nearest_mean", "freeze_backbone": True, "backbone": Backbone("test_resnet"), **arguments}
    with pytest.raises(ValueError, match=message) as caught:
        Classification(optimizer=AdamW(), schedule=Cosine(), **given)
    assert "\n" not in str(caught.value)


def test_a_class_without_an_image_and_a_trainer_with_steps_are_refused():
    features, labels = blobs()
    with pytest.raises(ValueError, match="there is none of c"):
        fitted(features, labels.clamp(max=1))
    backbone = Backbone("resnet10t", kwargs={"channels": (8, 8, 8, 8)})
    task = Classification(
        head="nearest_mean", freeze_backbone=True, backbone=backbone, optimizer=AdamW(), schedule=Cosine()
    )
    trainer = Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    with pytest.warns(UserWarning, match="no optimizer"), pytest.raises(ValueError, match="has nothing to train"):
        trainer.fit(task, datamodule=ImageData(**DATA))


@pytest.mark.parametrize("command", [["diagnose", "transfer"], ["lr-find", "transfer"]])
def test_what_looks_at_a_training_says_that_there_is_none(weights, capsys, command):
    import yaml

    settings = {**recipe(weights), "data": DATA, "trainer": {"accelerator": "cpu", "max_epochs": 1}}
    assert main([*command, "-c", yaml.safe_dump(settings)]) == 2
    assert "nothing to train" in capsys.readouterr().err
