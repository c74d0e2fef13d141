"""Predictions against the network that the run itself has tested, on the same images."""

import csv
import functools
import hashlib
import json
import shutil
import tarfile
import time
from pathlib import Path

import numpy as np
import pyarrow.dataset
import pyarrow.parquet
import pytest
import safetensors.torch
import torch
import yaml
from PIL import Image

import ssl_toolkit
from downstream.base import Classifier
from downstream.classification import Classification
from ssl_toolkit.cli import main
from ssl_toolkit.cli.train import train
from ssl_toolkit.evaluation import predict as evaluation
from ssl_toolkit.evaluation.progress import Steps
from ssl_toolkit.modules.backbone import Backbone
from ssl_toolkit.tracking.metrics_csv import last_values
from ssl_toolkit.weights import save_backbone
from ssl_toolkit.weights.model import read_model_header

CLASSES = ("=1+1", "name", "probability")
COLOURS = ((60, 90, 160), (90, 150, 90), (150, 80, 80))
SETTINGS = {
    "optimizer": {"class_path": "ssl_toolkit.optim.AdamW", "init_args": {"lr": 0.01}},
    "schedule": {"class_path": "ssl_toolkit.schedule.Cosine"},
}
NARROW = {"name": "resnet10t", "kwargs": {"channels": [8, 8, 16, 16]}}
VARIANTS = {
    "frozen": ["--model.freeze_backbone", "true"],
    "fine-tuned": ["--model.layer_decay", "0.7", "--model.head", "mlp", "--model.hidden", "16"],
    "averaged": ["--average.kind", "ema", "--average.decay", "0.9"],
    "the best": ["--early_stopping.patience", "1", "--early_stopping.monitor", "val/top1",
                 "--early_stopping.min_delta", "99"],
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Noisy images of three colours, which a short training cannot always tell apart; sizes differ."""
    path = tmp_path_factory.mktemp("colours") / "images"
    random = np.random.default_rng(0)
    for name, colour in zip(CLASSES, COLOURS, strict=True):
        (path / name).mkdir(parents=True)
        for number in range(16):
            pixels = random.normal(colour, 60, (24 + number % 3, 28, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(path / name / f"{number:02d}.png")
    return path


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Weights with a normalisation of their own."""
    torch.manual_seed(0)
    backbone = Backbone(**NARROW)
    backbone.set_normalization((0.2, 0.3, 0.4), (0.5, 0.6, 0.7))
    file = tmp_path_factory.mktemp("weights") / "backbone.safetensors"
    save_backbone(file, backbone, {"config": {"data": {"image_size": 24}}})
    return file


def transfer(place, folder, *options, tested=None, **sections):
    """Trains a classifier; ``tested`` takes up the probabilities that ``Trainer.test`` computes, by the names."""
    recipe = {
        "model": {"class_path": "downstream.classification.Classification", "init_args": SETTINGS},
        "data": {"path": str(folder), "image_size": 24, "batch_size": 7, "cache": "memory", "val_fraction": 0.2},
        "trainer": {"max_epochs": 3, "accelerator": "cpu"},
        "tracker": "none",
        **sections,
    }
    (place / "recipe.yaml").write_text(yaml.safe_dump(recipe))

    def test_step(self, batch, batch_idx):
        step(self, batch, batch_idx)
        logits = self.logits(self.encode(batch, batch.indices))
        for index, each in zip(batch.indices.tolist(), logits.double().softmax(dim=1), strict=True):
            # the first network that is tested is the run's, should there be others to compare it with
            tested.setdefault(self.data.name("test", index), each.numpy())

    step = Classifier.test_step
    with pytest.MonkeyPatch.context() as patch:
        if tested is not None:
            patch.setattr(Classifier, "test_step", test_step)
        return train(
            "transfer", ["-c", str(place / "recipe.yaml"), "--out", str(place / "run"), *options], quietly=True
        )


@pytest.fixture(scope="module")
def run(folder, weights, tmp_path_factory):
    """A run whose pretrained weights are gone."""
    place = tmp_path_factory.mktemp("probe")
    kept = shutil.copy(weights, place / "gone.safetensors")
    run = transfer(place, folder, "--model.weights", str(kept), *VARIANTS["frozen"])
    Path(kept).unlink()
    return run


def predict(run, out, *options, path):
    """Runs the command; the table's rows, a dict each."""
    assert main(["predict", str(run), "--data.path", str(path), "--out", str(out), "--device", "cpu", *options]) == 0
    if out.suffix == ".parquet":
        return pyarrow.parquet.read_table(out).to_pylist()
    with out.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def probabilities(rows, classes=CLASSES):
    return np.array([[float(row[f"p_{name}"]) for name in classes] for row in rows])


def error(capsys, *arguments):
    assert main(["predict", *map(str, arguments)]) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("ssl-toolkit: error: ")
    assert "\n" not in said
    return said


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.slow
def test_predictions_are_those_of_the_network_that_was_tested(folder, weights, tmp_path, variant):
    tested = {}
    run = transfer(tmp_path, folder, "--model.weights", str(weights), *VARIANTS[variant], tested=tested)
    rows = predict(run, tmp_path / "table.parquet", "--precision", "32", path=folder)
    found = {row["name"]: each for row, each in zip(rows, probabilities(rows), strict=True)}
    assert len(tested) == 10
    for name, expected in tested.items():
        np.testing.assert_allclose(found[name], expected, atol=1e-6, err_msg=name)
    right = [row["class"] == row["name"].split("/")[0] for row in rows if row["name"] in tested]
    assert np.mean(right) == pytest.approx(last_values(run)["test/top1"])
    header = read_model_header(run / "model.safetensors")
    # training images over batches: the best epoch was the first of two
    assert header["step"] == (4 if variant == "the best" else 12)
    assert (header["class_names"], header["image_size"]) == (list(CLASSES), 24)


@pytest.mark.slow
def test_each_image_has_a_row_in_order_and_no_batch_size_changes_it(run, folder, tmp_path):
    tables = []
    for size in (1, 5, 64):
        options = ["--precision", "32", "--data.batch_size", str(size), "--data.cache", "none"]
        tables.append(predict(run, tmp_path / f"{size}.csv", *options, path=folder))
    names = [f"{name}/{number:02d}.png" for name in CLASSES for number in range(16)]
    # an apostrophe keeps a spreadsheet from computing
    assert [row["name"].removeprefix("'") for row in tables[0]] == names
    assert list(tables[0][0]) == ["name", "class", "probability", "p_=1+1", "p_name", "p_probability"]
    for rows in tables:
        table = probabilities(rows)
        np.testing.assert_allclose(table, probabilities(tables[0]), atol=1e-6)
        np.testing.assert_allclose(table.sum(axis=1), 1, atol=1e-6)
        for row, each in zip(rows, table, strict=True):
            chosen = CLASSES[each.argmax()]
            assert row["class"] == (f"'{chosen}" if chosen.startswith("=") else chosen)
            assert float(row["probability"]) == each.max()
    assert len({row["class"] for row in tables[0]}) > 1


@pytest.mark.slow
def test_a_run_whose_images_a_table_named_predicts_a_folder(folder, weights, tmp_path):
    files = sorted(file.relative_to(folder) for file in folder.rglob("*.png"))
    rows = "".join(f"{file.as_posix()},{file.parent.name},{file.stem}\n" for file in files[::2])
    (tmp_path / "table.csv").write_text(f"path,kind,writer\n{rows}")
    options = ["--data.table", str(tmp_path / "table.csv"), "--data.columns", "{label: kind, group: writer}"]
    run = transfer(tmp_path, folder, "--model.weights", str(weights), *options, *VARIANTS["frozen"])
    table = predict(run, tmp_path / "table.parquet", path=folder)
    assert [row["name"] for row in table] == [file.as_posix() for file in files]


def test_parquet_says_what_made_it(run, folder, tmp_path):
    rows = predict(run, tmp_path / "table.parquet", path=folder / "name")
    assert [row["name"] for row in rows] == [f"{number:02d}.png" for number in range(16)]
    schema = pyarrow.parquet.read_schema(tmp_path / "table.parquet")
    assert [str(field.type) for field in schema] == ["string", "string"] + ["float"] * 4
    about = json.loads(schema.metadata[b"ssl_toolkit"])
    assert about.pop("precision") in ("32", "bf16")
    assert about == {
        "run": str(run),
        "sha256": hashlib.sha256((run / "model.safetensors").read_bytes()).hexdigest(),
        "task": "downstream.classification.Classification",
        "step": 12,
        "image_size": 24,
        "class_names": list(CLASSES),
        "ranges": {},
    }


def test_a_single_image_and_an_unfinished_run_are_enough(run, folder, tmp_path, capsys):
    run = Path(shutil.copytree(run, tmp_path / "run"))
    (tmp_path / "images").mkdir()
    shutil.copy(folder / "name" / "03.png", tmp_path / "images")
    rows = predict(run, tmp_path / "table.csv", path=tmp_path / "images")
    assert [row["name"] for row in rows] == ["03.png"]
    assert "not finished" not in capsys.readouterr().err
    (run / "status.json").write_text('{"state": "preempted"}')
    # the folder of the run may come last
    given = ["--data.path", tmp_path / "images", "--out", tmp_path / "other.csv", "--device", "cpu", run]
    assert main(["predict", *map(str, given)]) == 0
    assert "the run is not finished (preempted): its weights are those of step 12" in capsys.readouterr().err
    assert (tmp_path / "other.csv").read_bytes() == (tmp_path / "table.csv").read_bytes()


@pytest.mark.parametrize("cache", ["memory", "none"])
def test_bad_images_have_no_row_and_are_listed(run, folder, tmp_path, cache, capsys):
    shutil.copytree(folder / "name", tmp_path / "images")
    for name in ("00.png", "05.png", "06.png", "07.png"):
        (tmp_path / "images" / name).write_bytes(b"not an image")
    options = ["--data.cache", cache, "--data.max_bad", "0.5", "--data.batch_size", "2", "--precision", "32"]
    rows = predict(run, tmp_path / "table.csv", *options, path=tmp_path / "images")
    said = capsys.readouterr().out
    assert [row["name"] for row in rows] == [f"{number:02d}.png" for number in range(16) if number not in (0, 5, 6, 7)]
    listing = (tmp_path / "table_bad_files.txt").read_text().splitlines()
    assert [line.split("\t")[0] for line in listing] == ["00.png", "05.png", "06.png", "07.png"]
    assert f"unreadable files left out: 4, listed in {tmp_path / 'table_bad_files.txt'}" in said
    assert f"{tmp_path / 'images'}: 12 images; bad images left out: 4" in said
    whole = predict(run, tmp_path / "whole.csv", "--precision", "32", path=folder)
    expected = {row["name"]: row for row in whole}
    np.testing.assert_allclose(
        probabilities(rows), probabilities([expected[f"name/{row['name']}"] for row in rows]), atol=1e-6
    )


def test_the_range_of_deep_images_is_the_run_s(tmp_path):
    """Measured on the dark images alone it would be another one."""
    random = np.random.default_rng(0)
    for name, mean in (("bright", 3000), ("dark", 300)):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(12):
            pixels = random.normal(mean, 100, (24, 24)).clip(0, 4095).astype(np.uint16)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{number}.png")
    tested = {}
    data = {"path": str(tmp_path / "images"), "image_size": 24, "batch_size": 6, "channels": 1, "test_fraction": 0.4}
    model = {**SETTINGS, "backbone": {**NARROW, "in_channels": 1}}
    model = {"class_path": "downstream.classification.Classification", "init_args": model}
    run = transfer(tmp_path, tmp_path / "images", tested=tested, model=model, data=data)
    rows = predict(run, tmp_path / "table.csv", "--precision", "32", path=tmp_path / "images" / "dark")
    found = dict(zip([f"dark/{row['name']}" for row in rows], probabilities(rows, ("bright", "dark")), strict=True))
    shared = tested.keys() & found.keys()
    assert len(shared) == 5
    for name in shared:
        np.testing.assert_allclose(found[name], tested[name], atol=1e-6)
    assert read_model_header(run / "model.safetensors")["ranges"].keys() == {"uint16"}


@pytest.mark.parametrize("sampling", ["uniform", "clip"])
@pytest.mark.slow
def test_sequences_are_predicted_with_the_run_s_frames(tmp_path, sampling):
    random = np.random.default_rng(0)
    for name, colour in (("falls", (150, 80, 80)), ("rises", (80, 150, 80))):
        for number in range(10):
            place = tmp_path / "images" / name / f"{number}"
            place.mkdir(parents=True)
            for frame in range(3 + number % 4):
                pixels = random.normal(colour, 70, (24, 24, 3)).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(place / f"frame_{frame}.png")
    model = {
        "class_path": "downstream.sequence.SequenceClassification",
        "init_args": {**SETTINGS, "backbone": NARROW, "freeze_backbone": True},
    }
    model["init_args"]["head"] = {"class_path": "downstream.sequence.RecurrentHead", "init_args": {"hidden": 8}}
    data = {"path": str(tmp_path / "images"), "image_size": 24, "batch_size": 4, "max_frames": 2}
    tested = {}
    run = transfer(tmp_path, None, tested=tested, model=model, data={**data, "sampling": sampling})
    out = tmp_path / "table.csv"
    options = ["--precision", "32", "--data.batch_size", "3"]
    rows = predict(run, out, *options, path=tmp_path / "images")
    assert [row["name"] for row in rows] == [f"{name}/{number}" for name in ("falls", "rises") for number in range(10)]
    found = dict(zip([row["name"] for row in rows], probabilities(rows, ("falls", "rises")), strict=True))
    assert len(tested) == 4
    for name, expected in tested.items():
        np.testing.assert_allclose(found[name], expected, atol=1e-6)
    # the default precision may be bfloat16
    predict(run, tmp_path / "auto.csv", path=tmp_path / "images")


def test_a_resumed_run_that_is_finished_writes_the_model_file(run, folder, tmp_path, capsys, weights):
    run = Path(shutil.copytree(run, tmp_path / "run"))
    config = yaml.safe_load((run / "config.yaml").read_text())
    shutil.copy(weights, config["model"]["init_args"]["weights"])
    before = safetensors.torch.load_file(run / "model.safetensors")
    (run / "model.safetensors").unlink()
    said = error(capsys, run, "--data.path", folder, "--out", tmp_path / "table.csv")
    assert f"ssl-toolkit transfer --resume {run} writes it" in said
    train("transfer", ["--resume", str(run)], quietly=True)
    Path(config["model"]["init_args"]["weights"]).unlink()
    after = safetensors.torch.load_file(run / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(each, after[name]) for name, each in before.items())
    assert {name.partition(".")[0] for name in after} == {"backbone", "standardize", "head"}
    assert all(each.dtype in (torch.float32, torch.int64) for each in after.values())


@pytest.mark.slow
def test_what_cannot_be_predicted_is_one_line(run, folder, tmp_path, recipe, capsys):
    out = tmp_path / "table.csv"
    given = ["--data.path", folder, "--out", out]
    assert "missing: the folder of a run" in error(capsys, *given)
    assert "the folder does not exist" in error(capsys, tmp_path / "nowhere", *given)
    assert "the folder holds no config.yaml" in error(capsys, tmp_path, *given)
    assert "data.path is missing" in error(capsys, run, "--out", out)
    assert "is a file, expected the folder of a run" in error(capsys, run / "config.yaml", *given)
    assert "--device is 'nope', but this machine has cpu" in error(capsys, run, *given, "--device", "nope")
    assert "an argument too many: more" in error(capsys, run, "more", *given)
    assert "missing: --out" in error(capsys, run, "--data.path", folder)
    for option, value in (("image_size", "32"), ("channels", "1"), ("range", "full"), ("split_seed", "3")):
        said = error(capsys, run, *given, f"--data.{option}", value)
        assert f"--data.{option}: predict reads images as the run was trained with, {option} " in said
    for option, value in (("val_fraction", "0.5"), ("labels", "folder"), ("max_images", "3")):
        said = error(capsys, run, *given, f"--data.{option}={value}")
        assert f"--data.{option}: predict takes every image of data.path, each once, and no labels" in said
    assert "did you mean '--data.batch_size'" in error(capsys, run, *given, "--data.batchsize", "3")
    said = error(capsys, run, *given, "--data.source", "torchvision:CIFAR10")
    assert "predict takes folder, shards, procedural" in said
    assert "predict writes .parquet, .csv or a folder (a name without a suffix), got 'table.xlsx'" in error(
        capsys, run, *given[:2], "--out", tmp_path / "table.xlsx"
    )
    assert not out.exists()
    out.write_text("precious")
    assert "table.csv' exists already and is not overwritten" in error(capsys, run, *given)
    assert out.read_text() == "precious"
    pretrained = train("pretrain", ["-c", recipe, "--out", str(tmp_path / "pretrained")], quietly=True)
    assert not (pretrained / "model.safetensors").exists()
    capsys.readouterr()
    said = error(capsys, pretrained, *given)
    assert f"{pretrained} is a run of SimCLR, which predicts nothing of an image" in said
    assert f"ssl-toolkit embed --weights {pretrained / 'backbone.safetensors'}" in said


@pytest.mark.slow
def test_files_that_do_not_fit_together_are_one_line(run, folder, tmp_path, capsys):
    run = Path(shutil.copytree(run, tmp_path / "run"))
    given = [run, "--data.path", folder, "--out", tmp_path / "table.csv"]
    config = yaml.safe_load((run / "config.yaml").read_text())

    def said(section, **settings):
        changed = {**config, section: config[section] | settings}
        (run / "config.yaml").write_text(yaml.safe_dump(changed))
        return error(capsys, *given)

    assert "its image_size is 24, that of config.yaml is 32" in said("data", image_size=32)
    arguments = config["model"]["init_args"]
    assert "its num_classes is 3, that of config.yaml is 4" in said("model", init_args={**arguments, "num_classes": 4})
    wider = {**arguments, "backbone": {**NARROW, "kwargs": {"channels": [8, 8, 16, 24]}}}
    (run / "config.yaml").write_text(yaml.safe_dump({**config, "model": {**config["model"], "init_args": wider}}))
    assert main(["predict", *map(str, given)]) == 2
    first, *rest = capsys.readouterr().err.strip().splitlines()
    assert "does not fit the network of its run's config.yaml" in first
    assert rest[:2] == [
        f"{sign} backbone.model.layer4.0.conv1.weight: [{n}, 16, 3, 3]" for sign, n in (("-", 16), ("+", 24))
    ]
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    shutil.copy(run / "backbone.safetensors", run / "model.safetensors")
    assert "is of a backbone without a head" in error(capsys, *given)
    assert not (tmp_path / "table.csv").exists()


@pytest.mark.slow
def test_parts_of_two_processes_hold_the_rows_of_one_file(run, folder, tmp_path, capsys, monkeypatch):
    given = ["--precision", "32", "--data.batch_size", "5"]
    rows = predict(run, tmp_path / "one.parquet", *given, path=folder)
    parts, options = tmp_path / "parts", [*given, "--part_size", "9"]
    command = ["predict", str(run), "--data.path", str(folder), "--out", str(parts), "--device", "cpu", *options]
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        capsys.readouterr()
        assert main(command) == 0
        said = capsys.readouterr()
        if rank == "1":
            assert (said.out, said.err) == ("", "")
    assert said.out == f"images: {folder}: 48 images\npredictions: {parts}\n"
    assert f"{parts} (6 parts, 48 rows)" in said.err
    assert sorted(file.name for file in parts.iterdir())[:2] == ["_about.json", "part-00000.parquet"]
    found = pyarrow.dataset.dataset(parts).to_table()
    assert found.column_names == list(rows[0])
    assert found["name"].to_pylist() == [row["name"] for row in rows]
    np.testing.assert_allclose(probabilities(found.to_pylist()), probabilities(rows), atol=1e-6)
    about = json.loads((parts / "_about.json").read_text())
    single = json.loads(pyarrow.parquet.read_schema(tmp_path / "one.parquet").metadata[b"ssl_toolkit"])
    assert single.items() <= about.items()
    monkeypatch.setenv("RANK", "1")
    assert main([*command[:5], str(tmp_path / "two.parquet"), "--device", "cpu"]) == 2
    said = capsys.readouterr().err
    assert "each of 2 processes would write" in said
    assert "give --out a folder" in said
    monkeypatch.delenv("RANK")
    monkeypatch.delenv("WORLD_SIZE")
    assert "was begun with --data.batch_size 5, now it is 4" in error(capsys, *command[1:], "--data.batch_size", "4")
    assert "part_size is for a folder" in error(capsys, *command[1:5], tmp_path / "x.csv", "--part_size", "3")


def test_a_model_file_is_no_weights_file(run, tmp_path, capsys):
    command = ["export", "--weights", str(run / "model.safetensors"), "--format", "timm", "--out"]
    assert main([*command, str(tmp_path / "x.safetensors")]) == 2
    assert "exports as onnx only, not as timm" in capsys.readouterr().err
    assert (
        main(["embed", "--weights", command[2], "--data.source", "procedural", "--out", str(tmp_path / "x.csv")]) == 2
    )
    assert "give the backbone.safetensors of its run instead" in capsys.readouterr().err


def test_probabilities_that_are_no_numbers_are_refused(run, folder, tmp_path, capsys, monkeypatch):
    logits = Classification.logits
    monkeypatch.setattr(Classification, "logits", lambda self, features: logits(self, features) * float("nan"))
    said = error(capsys, run, "--data.path", folder / "name", "--out", tmp_path / "table.csv", "--device", "cpu")
    assert "the predictions of 16 images are no numbers, the first is 00.png" in said
    assert not (tmp_path / "table.csv").exists()


def test_it_says_how_far_it_is(run, folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(evaluation, "Steps", functools.partial(Steps, every=0.02))
    predict_batch = Classifier.predict

    def slow(self, batch):
        time.sleep(0.05)
        return predict_batch(self, batch)

    monkeypatch.setattr(Classifier, "predict", slow)
    predict(run, tmp_path / "table.csv", "--data.batch_size", "12", path=folder)
    said = capsys.readouterr().err
    assert any(f"classes of the images: {num} of 48 after 0 s" in said for num in (12, 24, 36))


def test_python_predicts_the_same(run, folder, tmp_path):
    predict(run, tmp_path / "cli.csv", path=folder)
    out = ssl_toolkit.predict(run, data=folder, out=tmp_path / "api.csv", overrides={"device": "cpu"})
    assert out.read_bytes() == (tmp_path / "cli.csv").read_bytes()
    with pytest.raises(ValueError, match="run is an object of int, expected a run of transfer"):
        ssl_toolkit.predict(3, data=folder, out=tmp_path / "other.csv")


def test_the_training_ends_with_the_next_command(folder, tmp_path, capsys):
    model = {"class_path": "downstream.classification.Classification", "init_args": {**SETTINGS, "backbone": NARROW}}
    recipe = {"model": model, "data": {"path": str(folder), "image_size": 24, "batch_size": 16}, "tracker": "none"}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({**recipe, "trainer": {"max_epochs": 1}}))
    assert main(["transfer", "-c", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "run")]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f"next:    ssl-toolkit predict {tmp_path / 'run'} --data.path IMAGES --out predictions.csv"


def test_shards_are_predicted_as_the_folder_of_the_same_files(run, folder, tmp_path):
    with tarfile.open(tmp_path / "images.tar", "w") as archive:
        for file in sorted((folder / "name").iterdir()):
            archive.add(file, file.name)
    options = ["--data.source", "shards", "--data.index", str(tmp_path / "index"), "--precision", "32"]
    rows = predict(run, tmp_path / "shards.csv", *options, path=tmp_path / "images.tar")
    expected = predict(run, tmp_path / "folder.csv", "--precision", "32", path=folder / "name")
    assert len(rows) == 16
    np.testing.assert_allclose(probabilities(rows), probabilities(expected), atol=1e-6)
    assert all(row["name"].endswith(each["name"]) for row, each in zip(rows, expected, strict=True))
