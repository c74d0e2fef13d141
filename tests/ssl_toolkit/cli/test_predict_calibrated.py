"""`predict --calibrated`: the temperature that a run's test has found, against a grid over its validation images."""

import json
import shutil

import numpy as np
import pyarrow.parquet
import pytest
import torch
import torch.nn.functional as F
import yaml
from PIL import Image

from launch import state
from ssl_toolkit.cli import main
from ssl_toolkit.cli.predict import open_trained, trained_task
from ssl_toolkit.cli.train import train
from ssl_toolkit.data import ImageData
from ssl_toolkit.distributed.ranks import rank, world_size
from ssl_toolkit.tracking.metrics_csv import last_values
from ssl_toolkit.weights.model import read_model_header

DATA = {
    "source": "procedural", "image_size": 16, "batch_size": 16, "max_images": 160, "val_fraction": 0.3,
    "test_fraction": 0.3, "cache": "memory",
}  # fmt: skip
ARGUMENTS = {
    "backbone": {"name": "resnet10t", "kwargs": {"channels": [8, 8, 16, 16]}},
    "optimizer": {"class_path": "ssl_toolkit.optim.AdamW", "init_args": {"lr": 0.01}},
    "schedule": {"class_path": "ssl_toolkit.schedule.Cosine"},
}


def write_recipe(place, data=(), **trainer):
    recipe = {
        "model": {"class_path": "downstream.classification.Classification", "init_args": ARGUMENTS},
        "data": DATA | dict(data),
        "trainer": {"max_epochs": 8, "accelerator": "cpu", **trainer},
        "tracker": "none",
    }
    (place / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return str(place / "recipe.yaml")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    place = tmp_path_factory.mktemp("calibrated")
    return train("transfer", ["-c", write_recipe(place), "--out", str(place / "run")], quietly=True)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("to_predict") / "images"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(6):
        Image.fromarray(generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    return folder


def predict(run, images, out, *options):
    command = [
        "predict",
        str(run),
        "--data.path",
        str(images),
        "--out",
        str(out),
        "--device",
        "cpu",
        "--precision",
        "32",
    ]
    assert main([*command, *options]) == 0
    table = pyarrow.parquet.read_table(out)
    columns = [name for name in table.column_names if name.startswith("p_")]
    return np.stack([table[name].to_numpy() for name in columns], axis=1).astype(float), table


def naive_error(probabilities, labels):
    confidences, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    total = 0.0
    for number in range(15):
        within = (confidences > number / 15) & (confidences <= (number + 1) / 15)
        if within.any():
            total += within.mean() * abs(confidences[within].mean() - right[within].mean())
    return total


def check_figures(run):
    """Temperature and errors of a run against a grid, and loops, over the predictions of its model file."""
    task, header = trained_task(open_trained(str(run)))
    data = ImageData(**{**DATA, "labels": "folder"})
    scores, labels = {}, {}
    for split in ("val", "test"):
        with torch.no_grad():
            probabilities = [task.predict(batch).double() for batch in data.loader(split)]
        scores[split], labels[split] = torch.cat(probabilities).log(), data.labels(split)
    grid = np.geomspace(0.05, 20, 4001)
    best = grid[np.argmin([F.cross_entropy(scores["val"] / each, labels["val"]) for each in grid])]
    figures = last_values(run)
    assert header["temperature"] == pytest.approx(best, rel=0.002)
    assert figures["test/temperature"] == pytest.approx(header["temperature"], rel=1e-6)
    assert abs(header["temperature"] - 1) > 0.05, "else the test shows nothing"
    for name, temperature in (("ece", 1.0), ("ece_calibrated", header["temperature"])):
        probabilities = (scores["test"] / temperature).softmax(dim=1).numpy()
        assert figures[f"test/{name}"] == pytest.approx(naive_error(probabilities, labels["test"].numpy()), abs=1e-4)


def test_the_run_has_the_temperature_that_is_best_on_its_validation_images(run):
    check_figures(run)
    assert not [name for name in state(run)["state_dict"] if "temperature" in name]


def test_calibrated_predictions_are_the_others_to_a_power(run, images, tmp_path):
    plain, table = predict(run, images, tmp_path / "plain.parquet")
    found, calibrated = predict(run, images, tmp_path / "calibrated.parquet", "--calibrated")
    temperature = read_model_header(run / "model.safetensors")["temperature"]
    expected = plain ** (1 / temperature)
    np.testing.assert_allclose(found, expected / expected.sum(axis=1, keepdims=True), atol=1e-5)
    assert table["class"] == calibrated["class"]
    assert np.abs(found - plain).max() > 0.01
    about = [json.loads(each.schema.metadata[b"ssl_toolkit"]) for each in (table, calibrated)]
    assert about[1] == about[0] | {"temperature": temperature}
    again, _ = predict(run, images, tmp_path / "off.parquet", "--calibrated=false")
    assert np.array_equal(again, plain)


def test_a_folder_is_not_continued_with_another_temperature(run, images, tmp_path, capsys):
    command = ["predict", str(run), "--data.path", str(images), "--out", str(tmp_path / "parts"), "--device", "cpu"]
    assert main(command) == 0
    assert main([*command, "--calibrated"]) == 2
    assert "was begun with temperature None, now it is" in capsys.readouterr().err


@pytest.mark.slow
def test_without_a_temperature_it_is_refused(tmp_path, images, capsys):
    for name, fractions in (("no-val", {"val_fraction": 0.0}), ("no-test", {"test_fraction": 0.0})):
        recipe = write_recipe(tmp_path, fractions, max_epochs=1)
        run = train("transfer", ["-c", recipe, "--out", str(tmp_path / name)], quietly=True)
        figures = last_values(run)
        assert "test/temperature" not in figures
        assert ("test/ece" in figures) == (name == "no-val")
        capsys.readouterr()
        command = ["predict", str(run), "--calibrated", "--data.path", str(images), "--out", str(tmp_path / "x.csv")]
        assert main(command) == 2
        said = capsys.readouterr().err.strip()
        assert "\n" not in said
        assert f"{run} has no temperature: its test finds one" in said
    assert not (tmp_path / "x.csv").exists()


@pytest.mark.slow
def test_a_finished_run_of_an_earlier_version_gets_one_when_it_is_resumed(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")
    expected = read_model_header(copy / "model.safetensors")["temperature"]
    (copy / "model.safetensors").unlink()
    train("transfer", ["--resume", str(copy)], quietly=True)
    assert read_model_header(copy / "model.safetensors")["temperature"] == pytest.approx(expected, rel=1e-6)


def _transfer_in_a_group(recipe, out, strategy):
    import os

    os.environ.update(
        RANK=str(rank()), LOCAL_RANK=str(rank()), WORLD_SIZE=str(world_size()), TORCHELASTIC_RUN_ID="tests",
        MASTER_ADDR="127.0.0.1", MASTER_PORT="1",
    )  # fmt: skip
    torch.set_num_threads(1)
    options = ["--trainer.strategy", strategy, "--trainer.devices", str(world_size()), "--data.batch_size", "8"]
    train("transfer", ["-c", recipe, "--out", str(out), *options], quietly=True)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_processes_find_what_one_finds_also_with_sharded_weights(images, run_processes, tmp_path, strategy):
    run_processes(_transfer_in_a_group, 2, write_recipe(tmp_path), str(tmp_path / "two"), strategy, timeout=200)
    check_figures(tmp_path / "two")
    predict(tmp_path / "two", images, tmp_path / "table.parquet", "--calibrated")
