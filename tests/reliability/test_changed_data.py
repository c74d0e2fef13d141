"""Data that change between a kill and its resume: no test image is ever one that the run has trained on."""

from __future__ import annotations

import re
import shutil

import numpy as np
import pytest
from PIL import Image

from ssl_toolkit.cli import main
from ssl_toolkit.data.split_file import FILE

MODEL = ["--model.backbone.name", "resnet10t", "--model.backbone.kwargs", "{stem_width: 8, channels: [8, 8, 16, 16]}"]


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """Images, and a transfer that was stopped in its first epoch."""
    folder, generator = tmp_path_factory.mktemp("changed"), np.random.default_rng(0)
    for number in range(60):
        file = folder / "images" / "ab"[number % 2] / f"{number:02}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(file)
    trainer = ["--trainer.max_steps", 3, "--trainer.max_epochs", -1, "--trainer.accelerator", "cpu"]
    images = ["--data.path", folder / "images", "--data.image_size", 16, "--data.batch_size", 6]
    options = ["-c", "configs/transfer/linear_probe.yaml", *MODEL, *images, "--data.test_fraction", 0.4, *trainer]
    options += ["--tracker", "none", "--out", folder / "run"]
    assert main(["transfer", *map(str, options)]) == 0
    return folder


@pytest.fixture
def folder(begun, tmp_path):
    return shutil.copytree(begun, tmp_path / "copy")


def resume(folder):
    options = ["--data.path", str(folder / "images"), "--trainer.max_steps", "6"]
    return main(["transfer", "--resume", str(folder / "run"), *options])


@pytest.mark.guarantee("R16")
@pytest.mark.slow
def test_an_image_more_moves_no_test_image(folder, capsys):
    shutil.copy(folder / "images/a/00.png", folder / "images/a/00-new.png")
    before = (folder / "run" / FILE).read_bytes()
    assert resume(folder) == 0
    assert (folder / "run" / FILE).read_bytes() == before
    captured = capsys.readouterr()
    assert "new since the run was begun, and left out: 1 image;" in captured.err
    assert re.search(r"images: \d+ train, \d+ val, 24 test images of 2 classes \(a, b\)", captured.out)


@pytest.mark.guarantee("R16")
def test_an_image_less_is_refused_and_the_run_stays_as_it_was(folder, capsys):
    (folder / "images/a/00.png").unlink()
    files = {file: file.read_bytes() for file in (folder / "run").rglob("*") if file.is_file()}
    assert resume(folder) == 2
    assert "gone since the run was begun: 1 of its 60 images, such as a/00.png" in capsys.readouterr().err
    assert files == {file: file.read_bytes() for file in (folder / "run").rglob("*") if file.is_file()}


def test_a_run_of_an_earlier_version_goes_on_and_gets_its_file(folder):
    (folder / "run" / FILE).unlink()
    assert resume(folder) == 0
    assert (folder / "run" / FILE).exists()
