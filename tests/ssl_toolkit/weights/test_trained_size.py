"""The size of images is that of the weights' training, unless another is asked for, and it is said."""

from __future__ import annotations

import json

import pytest

from ssl_toolkit.cli import main
from ssl_toolkit.modules import Backbone
from ssl_toolkit.weights import save_backbone
from ssl_toolkit.weights.trained_size import trained_size

DATA = ["--data.source", "procedural", "--data.max_images", "60", "--data.cache", "memory"]
SMALL = {"name": "resnet10t", "kwargs": {"stem_width": 8, "channels": [8, 8, 16, 16]}}


@pytest.fixture
def weights(tmp_path):
    """Of a training with images of 40 px."""
    return save(tmp_path, {"config": {"data": {"image_size": 40}}})


def save(folder, header):
    save_backbone(folder / "backbone.safetensors", Backbone(**SMALL), header)
    return str(folder / "backbone.safetensors")


def evaluated(weights, folder, *options):
    out = folder / "evaluation.json"
    assert main(["evaluate", "--weights", weights, *DATA, "--stages", "false", "--out", str(out), *options]) == 0
    return json.loads(out.read_text())["image_size"]


def test_evaluate_takes_the_size_from_the_weights(weights, tmp_path, capsys):
    assert evaluated(weights, tmp_path) == 40
    assert "images of 40 px, as the weights were trained with\n" in capsys.readouterr().err


def test_another_size_is_used_and_said(weights, tmp_path, capsys):
    assert evaluated(weights, tmp_path, "--data.image_size", "32") == 32
    said = "images of 32 px, but the weights were trained with 40 px; --data.image_size 40 is their size\n"
    assert said in capsys.readouterr().err


def test_weights_that_do_not_say_it(tmp_path, capsys):
    assert evaluated(save(tmp_path, {}), tmp_path, "--data.image_size", "24") == 24
    assert "images of 24 px (the weights do not say which they were trained with" in capsys.readouterr().err


def test_embed_takes_the_size_from_the_weights(weights, tmp_path, capsys):
    out = tmp_path / "features.npz"
    assert main(["embed", "--weights", weights, *DATA, "--out", str(out)]) == 0
    assert "images of 40 px, as the weights" in capsys.readouterr().err


@pytest.mark.parametrize(
    "config", [None, "text", {"data": 3}, {"data": {"image_size": "40"}}, {"data": {"image_size": True}}]
)
def test_a_header_of_another_make_says_nothing(config):
    assert trained_size({"config": config}) is None


@pytest.mark.slow
def test_earlier_figures_are_kept(weights, tmp_path, capsys):
    evaluated(weights, tmp_path)
    evaluated(weights, tmp_path, "--data.image_size", "24")
    evaluated(weights, tmp_path, "--data.image_size", "16")
    sizes = [json.loads((tmp_path / f"evaluation{each}.json").read_text())["image_size"] for each in ("-1", "-2", "")]
    assert sizes == [40, 24, 16]
    assert f"earlier figures: {tmp_path / 'evaluation-2.json'}\n" in capsys.readouterr().out


def test_the_report_of_a_run_is_made_again(weights, tmp_path, capsys):
    (tmp_path / "config.yaml").write_text("model: {}\n")
    evaluated(weights, tmp_path)
    assert "Evaluation on frozen features" in (tmp_path / "report.html").read_text()
    assert main(["report", str(tmp_path)]) == main(["report", "--run_dir", str(tmp_path)]) == 0
