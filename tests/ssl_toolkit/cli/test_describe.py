"""``describe``: the network of a name, a recipe, a run or a weights file, and one line for a mistake."""

from __future__ import annotations

import csv

import pytest
import yaml

from ssl_toolkit.cli import main
from ssl_toolkit.modules import Backbone
from ssl_toolkit.run_folder import CONFIG, WEIGHTS
from ssl_toolkit.weights import save_backbone


def shown(capsys, *arguments):
    assert main(["describe", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def test_a_network_of_timm(capsys, tmp_path):
    text = shown(capsys, "resnet18", "--image_size", 32, "--stem", "small", "--out", tmp_path / "t.csv")
    assert text.splitlines()[0] == "resnet18 with the small stem, images of 3x32x32"
    assert "11,168,832 parameters; 555 M multiply-adds an image" in text
    with (tmp_path / "t.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[0] == {"layer": "conv1", "kind": "Conv2d 3x3", "output": "64x32x32", "receptive field": "3",
                       "parameters": "1728", "multiply-adds": str(1728 * 32 * 32)}  # fmt: skip
    assert len(rows) == 20
    assert main(["describe", "resnet18", "--out", str(tmp_path / "t.csv")]) == 2


def test_a_recipe_has_a_size_of_its_own(capsys):
    assert shown(capsys, "simclr_cifar10_cpu").splitlines()[0] == "resnet18 with the middle stem, images of 3x32x32"


def test_a_weights_file_and_a_run(capsys, tmp_path):
    backbone = Backbone("resnet10t", in_channels=1, kwargs={"channels": (8, 8, 8, 8)})
    save_backbone(tmp_path / WEIGHTS, backbone, {"config": {"data": {"image_size": 48}}})
    first = shown(capsys, tmp_path / WEIGHTS)
    assert first.splitlines()[0] == "resnet10t, images of 1x48x48"
    config = {"model": {"init_args": {"weights": "x", "backbone": None}}, "data": {"image_size": 64}}
    (tmp_path / CONFIG).write_text(yaml.safe_dump(config))
    second = shown(capsys, tmp_path)
    assert second.splitlines()[0] == "resnet10t, images of 1x64x64"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["resnet81"], "did you mean 'resnet18'"),
        (["linear_probe"], "'linear_probe' names no network"),
        (["."], "is a folder without a config.yaml"),
        (["resnet18", "--image_size", "0"], "--image_size is 0"),
        (["resnet18", "--stem", "tiny"], "stem is one of standard, middle, small"),
        (["nowhere.safetensors"], "nowhere.safetensors"),
        (["resnet18", "--out", "t.txt"], "describe writes .csv"),
    ],
)
def test_mistakes_are_one_line(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["describe", *arguments]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert len(said.strip().splitlines()) == 1
