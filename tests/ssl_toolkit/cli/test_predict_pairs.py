"""`predict` with a run of pairs of images, and with a run of shards whose windows folders do not have."""

from __future__ import annotations

import csv
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import ssl_toolkit
from ssl_toolkit.cli import main

CPU = {"trainer.accelerator": "cpu", "trainer.devices": 1, "trainer.max_epochs": 1}
ARGUMENTS = {
    "backbone": {"name": "resnet10t", "kwargs": {"channels": [8, 8, 16, 16]}},
    "freeze_backbone": True,
    "optimizer": {"class_path": "AdamW", "init_args": {"lr": 0.01}},
    "schedule": {"class_path": "Cosine"},
}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(24):
        Image.fromarray(random.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    return folder


def trained(out: Path, task: str, arguments: dict, data: dict) -> Path:
    model = {"class_path": task, "init_args": {**ARGUMENTS, **arguments}}
    data = {"image_size": 16, "batch_size": 4, "test_fraction": 0.0, **data}
    ssl_toolkit.transfer({"model": model, "tracker": "none"}, data=data, out=out, overrides=CPU)
    return out


def test_folders_are_predicted_as_pairs_and_what_is_none_is_refused(images: Path, tmp_path: Path, capsys) -> None:
    rows = [f"{number}.png,{number + 1}.png,{'ab'[number % 4 // 2]}" for number in range(0, 24, 2)]
    (tmp_path / "pairs.csv").write_text("\n".join(["path,other,label", *rows]) + "\n")
    data = {"table": str(tmp_path / "pairs.csv"), "path": str(images), "columns": {"second": "other"}}
    head = {"head": {"class_path": "downstream.sequence.PairHead", "init_args": {"rank": 2}}}
    run = trained(tmp_path / "run", "downstream.sequence.SequenceClassification", head, data)
    new = tmp_path / "new"
    for number in range(12):
        (new / f"{number:02d}").mkdir(parents=True)
        for place in range(2):
            (images / f"{2 * number + place}.png").rename(new / f"{number:02d}" / f"{place}.png")
    (new / "03" / "1.png").write_bytes(b"nothing")
    assert main(["predict", str(run), "--data.path", str(new), "--out", str(tmp_path / "out.csv")]) == 0
    with open(tmp_path / "out.csv", encoding="utf-8", newline="") as file:
        assert [row["name"] for row in csv.DictReader(file)] == [f"{number:02d}" for number in range(12) if number != 3]
    (new / "05" / "1.png").rename(new / "04" / "2.png")
    assert main(["predict", str(run), "--data.path", str(new), "--out", str(tmp_path / "no.csv")]) != 0
    assert "2 sequences of 12 in" in capsys.readouterr().err


def test_a_run_of_windows_of_shards_predicts_a_folder(images: Path, tmp_path: Path) -> None:
    for shard in range(2):
        with tarfile.open(tmp_path / f"{shard}.tar", "w") as file:
            for number in range(12 * shard, 12 * shard + 12):
                file.add(images / f"{number}.png", arcname=f"{'ab'[number % 2]}/{number}.png")
    data = {"source": "shards", "path": str(tmp_path / "*.tar"), "labels": "folder", "shard_window": 1}
    run = trained(tmp_path / "run", "downstream.classification.Classification", {}, data)
    of_folder = ["--data.path", str(images), "--data.source", "folder", "--out", str(tmp_path / "out.csv")]
    assert main(["predict", str(run), *of_folder]) == 0
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 25
