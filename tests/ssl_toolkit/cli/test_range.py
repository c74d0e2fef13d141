"""The range of numbers of more than 8 bits, from the training images to whatever the weights are used for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from ssl_toolkit.cli import main
from ssl_toolkit.cli.train import train
from ssl_toolkit.data import ImageData
from ssl_toolkit.run_folder import read_config
from ssl_toolkit.weights import read_header


def microscopy(folder: Path, white: int, num: int = 40) -> Path:
    """Pictures of 16 bits that use few of them, in two classes, a bad one and one that is not read."""
    draw = np.random.default_rng(0)
    for number in range(num):
        file = folder / "ab"[number % 2] / f"{number:02}.{number % 3}.tif"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, white + 1, (40, 40)).astype(np.uint16)).save(file)
    (folder / "a" / "cut.tif").write_bytes(file.read_bytes()[:300])
    (folder / "a" / "photo.heic").write_bytes(b"")
    return folder


def run(*arguments: object) -> None:
    assert main([str(argument) for argument in arguments]) in (0, None)


@pytest.fixture
def pretrained(recipe, tmp_path, capsys) -> Path:
    options = ["--data.source", "folder", "--data.max_images", "null", "--data.path", tmp_path / "train"]
    microscopy(tmp_path / "train", 4095)
    run("pretrain", "-c", recipe, "--out", tmp_path / "run", *options, "--trainer.max_steps", 1)
    said = capsys.readouterr().out
    assert "uint16, 12 bits used: range 0 to 4,095; not read: 1 .heic" in said
    assert "unreadable files left out: 1" in said
    return tmp_path / "run"


@pytest.mark.slow
def test_one_range_from_the_training_images_to_evaluation(pretrained, tmp_path, capsys, monkeypatch):
    expected = {"uint16": [0.0, 4095.0]}
    assert read_config(pretrained)["data"]["range"] == expected
    weights = pretrained / "backbone.safetensors"
    assert read_header(weights)["config"]["data"]["range"] == expected

    dark = microscopy(tmp_path / "dark", 1000)
    used: list[ImageData] = []
    original = ImageData.setup
    monkeypatch.setattr(ImageData, "setup", lambda data, stage=None: (used.append(data), original(data, stage))[1])
    small = ("--data.image_size", 40, "--data.batch_size", 8, "--device", "cpu")
    common = ("--weights", weights, "--data.path", dark, *small)
    run("embed", *common, "--out", tmp_path / "features.npz")
    run("evaluate", *common, "--stages", "false", "--random_weights", "false", "--out", tmp_path / "figures.json")
    said = capsys.readouterr().out
    assert said.count("uint16, 10 bits used: range 0 to 4,095; not read: 1 .heic") == 2
    for name in ("features", "figures"):
        listing = tmp_path / f"{name}_bad_files.txt"
        assert f"unreadable files left out: 1, listed in {listing}" in said
        assert listing.read_text(encoding="utf-8").startswith("a/cut.tif\t")
    # what is asked for comes first
    run("embed", *common, "--out", tmp_path / "own.npz", "--data.range", "[0, 2000]")
    run("embed", *common, "--out", tmp_path / "full.npz", "--data.range", "full")
    assert [data.ranges["uint16"] for data in used] == [[0, 4095]] * 2 + [[0, 2000], [0, 65535]]
    whites = [max(int(batch.images.pixels.max()) for batch in data.loader("train")) for data in used]
    assert whites == [round(1000 * 255 / 4095)] * 2 + [round(1000 * 255 / 2000), round(1000 / 257)]


@pytest.mark.slow
def test_transfer_and_a_resumed_run_keep_it(pretrained, tmp_path, capsys):
    dark = microscopy(tmp_path / "dark", 1000)
    recipe = {
        "model": {
            "class_path": "downstream.classification.Classification",
            "init_args": {
                "weights": str(pretrained / "backbone.safetensors"), "freeze_backbone": True,
                "optimizer": {"class_path": "ssl_toolkit.optim.AdamW", "init_args": {"lr": 0.01}},
                "schedule": {"class_path": "ssl_toolkit.schedule.Constant"},
            },
        },
        "data": {"path": str(dark), "labels": "folder", "image_size": 32, "batch_size": 8},
        "trainer": {"max_epochs": 1, "accelerator": "cpu"}, "tracker": "none",
    }  # fmt: skip
    (tmp_path / "transfer.yaml").write_text(yaml.safe_dump(recipe))
    run("transfer", "-c", tmp_path / "transfer.yaml", "--out", tmp_path / "probe")
    assert "uint16, 10 bits used: range 0 to 4,095" in capsys.readouterr().out
    assert read_config(tmp_path / "probe")["data"]["range"] == {"uint16": [0.0, 4095.0]}
    # other files do not move the range of a run that goes on; one that knew its files would refuse them
    (pretrained / "splits.parquet").unlink()
    for file in (tmp_path / "train").rglob("*.tif"):
        if file.name != "cut.tif":
            Image.fromarray(np.asarray(Image.open(file)) // 2).save(file)
    run("pretrain", "--resume", pretrained, "--trainer.max_steps", 2)
    assert "uint16, 11 bits used: range 0 to 4,095" in capsys.readouterr().out
    with pytest.raises(ValueError, match="range is full, but the run was begun with"):
        train("pretrain", ["--resume", str(pretrained), "--data.range", "full"])
