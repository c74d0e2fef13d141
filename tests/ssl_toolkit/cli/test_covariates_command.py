"""Runs whose head reads covariates: trained, resumed, applied with a table, exported."""

from __future__ import annotations

import csv
import json
import shutil
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import torch
from lightning.pytorch import Trainer
from PIL import Image

from downstream.classification import Classification
from ssl_toolkit.cli import main
from ssl_toolkit.cli.predict import open_trained, trained_task
from ssl_toolkit.data import ImageData
from ssl_toolkit.modules.backbone import Backbone
from ssl_toolkit.optim import AdamW
from ssl_toolkit.schedule import Cosine
from ssl_toolkit.weights import save_backbone
from ssl_toolkit.weights.model import read_model_header

NUM, SIDE = 24, 32


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images, weights, and a table of which one age is not known."""
    place, random = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    rows = []
    for number in range(NUM):
        pixels = random.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / f"{number:02d}.png")
        age = "" if number == 3 else f"{random.uniform(20, 90):.2f}"
        split = "test" if number > 17 else "val" if number > 14 else "train"
        rows.append([f"{number:02d}.png", "ab"[number % 2], split, age, f"{random.uniform(100, 300):.2f}"])
    write(place / "table.csv", rows)
    torch.manual_seed(0)
    backbone = Backbone("resnet10t", kwargs={"channels": [8, 8, 16, 16]})
    save_backbone(place / "backbone.safetensors", backbone, {})
    return place


def write(file, rows, header=("file", "label", "split", "age", "dose")):
    with file.open("w", newline="") as opened:
        csv.writer(opened).writerows([header, *rows])
    return file


def rows_of(folder):
    with (folder / "table.csv").open(newline="") as opened:
        return list(csv.reader(opened))[1:]


def transfer(folder, out, *options, recipe="linear_probe"):
    return main(
        [
            "transfer", "-c", recipe, "--data.table", str(folder / "table.csv"), "--data.columns.path", "file",
            "--data.covariates", "[age, dose]", "--data.image_size", str(SIDE), "--data.batch_size", "5",
            "--model.weights", str(folder / "backbone.safetensors"), "--trainer.max_epochs", "2",
            "--trainer.accelerator", "cpu", "--trainer.precision", "32", "--tracker", "none", "--out", str(out),
            *options,
        ]
    )  # fmt: skip


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    options = ["--model.covariates", "multiplicative", "--random_weights", "false"]
    assert transfer(folder, out, *options) == 0
    return out


def error(capsys, *arguments):
    capsys.readouterr()
    assert main([*map(str, arguments)]) == 2
    # what was read of a table is said before
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("ssl-toolkit: error: ")
    return said


def probabilities(file):
    table = pyarrow.parquet.read_table(file)
    return table["name"].to_pylist(), np.stack([table[f"p_{name}"].to_numpy() for name in "ab"], axis=1)


def test_a_run_is_applied_with_a_table(folder, run, tmp_path, capsys):
    assert read_model_header(run / "model.safetensors")["covariates"] == {"names": ["age", "dose"], "gaps": [0]}
    # rows of one image without a dose, in another order, and columns that would not do for a training
    rows = [[name, "", "nonsense", age, "" if name == "01.png" else dose] for name, _, _, age, dose in rows_of(folder)]
    table = write(tmp_path / "new.csv", rows[::-1])
    common = ["predict", str(run), "--data.table", str(table), "--data.path", str(folder), "--device", "cpu"]
    assert main([*common, "--precision", "32", "--out", str(tmp_path / "p.parquet")]) == 0
    assert "dose is not known of 1 image, and was of every training image" in capsys.readouterr().out
    names, found = probabilities(tmp_path / "p.parquet")
    assert names == [f"{number:02d}.png" for number in range(NUM)]
    # another age gives other probabilities, and those of its own image only
    rows[5][3] = "95"
    write(table, rows)
    assert main([*common, "--precision", "32", "--out", str(tmp_path / "q.parquet")]) == 0
    _, other = probabilities(tmp_path / "q.parquet")
    differ = np.abs(found - other).max(axis=1) > 1e-5
    assert differ.tolist() == [number == 5 for number in range(NUM)]
    # into part files, which other covariates do not go on with
    parts = [*common, "--precision", "32", "--part_size", "10", "--out", str(tmp_path / "parts")]
    assert main(parts) == 0
    together = np.concatenate([probabilities(each)[1] for each in sorted((tmp_path / "parts").glob("*.parquet"))])
    np.testing.assert_allclose(together, other, atol=1e-6)
    rows[5][3] = "96"
    write(table, rows)
    assert "was begun with covariates of SHA-256" in error(capsys, *parts)


def test_what_a_prediction_needs_is_said(folder, run, tmp_path, capsys):
    out = ["--out", str(tmp_path / "p.csv")]
    said = error(capsys, "predict", run, "--data.path", folder, *out)
    assert "reads age, dose of each image: give --data.table TABLE with the columns file, age, dose" in said
    table = write(tmp_path / "t.csv", [["00.png", "1"]], ("file", "age"))
    said = error(capsys, "predict", run, "--data.table", table, "--data.path", folder, *out)
    assert "has no column 'dose' of data.covariates; its columns are 'file', 'age'" in said
    said = error(capsys, "predict", run, "--data.covariates", "[age]", *out)
    assert "covariates ['age', 'dose']; leave it out" in said
    said = error(capsys, "pseudo-label", run, "--data.path", folder, *out)
    assert "pseudo-label needs a run with model.covariates none" in said


@pytest.mark.slow
def test_a_run_says_how_it_is_applied(folder, tmp_path, capsys):
    out = tmp_path / "run"
    options = ["--random_weights", "true", "--trainer.max_epochs", "1"]
    assert transfer(folder, out, *options) == 0
    said = capsys.readouterr().out
    assert "covariates, concatenated: age, dose; of 15 training images age is not known of 1" in said
    assert f"next:    ssl-toolkit predict {out} --data.table TABLE --data.path IMAGES" in said
    assert "the same head on random weights: " in said
    assert f"predict {out} --data.table TABLE" in (out / "report.html").read_text()
    out = tmp_path / "none"
    assert transfer(folder, out, *options[2:], "--model.covariates", "none", "--random_weights", "false") == 0
    assert f"next:    ssl-toolkit predict {out} --data.path IMAGES" in capsys.readouterr().out
    assert main(["predict", str(out), "--data.path", str(folder), "--out", str(tmp_path / "p.csv")]) == 0


def test_a_run_goes_on_with_its_covariates_only(folder, run, tmp_path, capsys):
    copy = shutil.copytree(run, tmp_path / "run")
    assert "data.covariates is ['age'], but the run was" in error(
        capsys, "transfer", "--resume", copy, "--data.covariates", "[age]"
    )
    assert "model.covariates is concatenated, but the run was" in error(
        capsys, "transfer", "--resume", copy, "--model.covariates", "concatenated"
    )
    table = folder / "table.csv"
    kept, rows = table.read_text(), rows_of(folder)
    rows[0][4] = "1.5"
    try:
        write(table, rows)
        said = error(capsys, "transfer", "--resume", copy, "--trainer.max_epochs", "3")
    finally:
        table.write_text(kept)
    assert "targets, weights or covariates of the 24 images have changed" in said
    assert main(["transfer", "--resume", str(copy), "--trainer.max_epochs", "3"]) == 0


def test_what_has_no_head_refuses_them(folder, tmp_path, capsys):
    common = ["--data.table", str(folder / "table.csv"), "--data.columns.path", "file", "--data.covariates", "[dose]"]
    weights = ["--weights", str(folder / "backbone.safetensors")]
    for command in (["evaluate", *weights], ["embed", *weights, "--out", str(tmp_path / "e.csv")]):
        assert "data.covariates are for the head of a transfer" in error(capsys, *command, *common)
    out = ["--model.backbone.name", "resnet10t", "--tracker", "none", "--out", str(tmp_path / "run")]
    said = error(capsys, "pretrain", "-c", "simclr", *common, *out)
    assert "data.covariates are for the head of a transfer, and SimCLR reads none" in said
    assert not (tmp_path / "run").exists()
    said = error(capsys, "transfer", "-c", "linear_probe", *common, "--model.covariates", "multiplied", *out)
    expected = "is multiplied, expected one of none, concatenated, multiplicative; did you mean 'multiplicative'?"
    assert said == f"ssl-toolkit: error: model.covariates {expected}"


@pytest.mark.slow
def test_a_fine_tuning_goes_on_with_the_head_of_a_probe(folder, tmp_path, capsys):
    probe = tmp_path / "probe"
    assert transfer(folder, probe, "--random_weights", "false", "--model.covariates", "concatenated") == 0
    head = str(probe / "model.safetensors")
    data = ImageData(
        f"{folder}", table=str(folder / "table.csv"), columns={"path": "file"}, covariates=["age", "dose"],
        image_size=SIDE, batch_size=24,
    )  # fmt: skip
    weights = str(folder / "backbone.safetensors")
    task = Classification(weights=weights, head_weights=head, optimizer=AdamW(), schedule=Cosine())
    trainer = Trainer(logger=False, accelerator="cpu", enable_checkpointing=False, enable_model_summary=False)
    task._trainer, trainer.datamodule = trainer, data
    task.setup("fit")
    batch = next(iter(data.loader("train")))
    expected: Any = trained_task(open_trained(str(probe)))[0]
    torch.testing.assert_close(task.predict(batch), expected.predict(batch), rtol=1e-3, atol=1e-4)
    other = ["--model.head_weights", head, "--data.covariates", "[dose]"]
    capsys.readouterr()
    assert transfer(folder, tmp_path / "other", *other, recipe="finetune") == 2
    said = capsys.readouterr().err
    assert (
        "reads the covariates age, dose, of which age may be unknown; that of the run reads the covariates dose" in said
    )


@pytest.mark.slow
def test_the_graph_has_them_as_a_second_input(folder, run, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    out, graph = tmp_path / "p.parquet", tmp_path / "model.onnx"
    table = ["--data.table", str(folder / "table.csv"), "--data.path", str(folder)]
    assert main(["predict", str(run), *table, "--precision", "32", "--out", str(out)]) == 0
    assert main(["export", "--weights", str(run / "model.safetensors"), "--format", "onnx", "--out", str(graph)]) == 0
    session = runtime.InferenceSession(graph)
    assert [each.name for each in session.get_inputs()] == ["images", "covariates"]
    assert json.loads(session.get_modelmeta().custom_metadata_map["covariates"]) == ["age", "dose"]
    rows = rows_of(folder)
    pixels = np.stack([np.asarray(Image.open(folder / row[0])) for row in rows])
    given = np.array([[float(row[3] or "nan"), float(row[4])] for row in rows], dtype=np.float32)
    _, found = session.run(None, {"images": pixels, "covariates": given})
    _, expected = probabilities(out)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    one = session.run(None, {"images": pixels[3:4], "covariates": given[3:4]})
    np.testing.assert_allclose(one[1], expected[3:4], rtol=1e-4, atol=1e-4)
