"""A run goes on without the weights files that it began with."""

from __future__ import annotations

import shutil

import pytest
import torch

import ssl_toolkit
from ssl_toolkit.cli import main
from ssl_toolkit.modules import Backbone
from ssl_toolkit.run_folder import newest_checkpoint, read_config
from ssl_toolkit.weights import read_header, save_backbone

DATA = {"source": "procedural", "max_images": 40, "image_size": 32, "batch_size": 10, "test_fraction": 0.2}


def train(out, **arguments):
    task = {"optimizer": {"class_path": "AdamW"}, "schedule": {"class_path": "Cosine"}, **arguments}
    recipe = {
        "model": {"class_path": "downstream.classification.Classification", "init_args": task},
        "tracker": "none",
        "random_weights": False,
    }
    settings = {
        "trainer.accelerator": "cpu",
        "trainer.max_epochs": 2,
        "trainer.precision": "32",
        "checkpoint.every_n_steps": 2,
    }
    return ssl_toolkit.transfer(recipe, data=DATA, out=out, overrides=settings).folder


def tensors(run):
    return torch.load(newest_checkpoint(run), weights_only=True)["state_dict"]


@pytest.mark.parametrize("lost", ["weights", pytest.param("both", marks=pytest.mark.slow)])
def test_a_run_goes_on_without_the_files_that_it_began_with(tmp_path, capsys, lost):
    torch.manual_seed(0)
    backbone = Backbone("resnet10t", kwargs={"channels": (8, 8, 16, 16)})
    backbone.set_normalization((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    weights = tmp_path / "backbone.safetensors"
    save_backbone(weights, backbone, {"pretext": "x"})
    began = {"weights": str(weights)}
    if lost == "both":
        began["head_weights"] = str(train(tmp_path / "probe", freeze_backbone=True, **began) / "model.safetensors")
    run = train(tmp_path / "run", **began)
    expected, config, header = tensors(run), read_config(run), read_header(run / "backbone.safetensors")
    killed = shutil.copytree(run, tmp_path / "killed")
    newest_checkpoint(killed).unlink()
    capsys.readouterr()
    for file in began.values():
        shutil.move(file, f"{file}.moved")
    assert main(["transfer", "--resume", str(killed)]) == 0
    said = capsys.readouterr().out
    assert said.count("is no longer there, and not needed") == len(began)
    for name, each in expected.items():
        assert torch.equal(each, tensors(killed)[name]), name
    assert read_config(killed) == config
    after = read_header(killed / "backbone.safetensors")
    for name in ("pretraining", "mean", "std", "backbone"):
        assert after[name] == header[name]
    assert after["pretraining"]["weights"] == str(weights)


def test_before_the_first_checkpoint_the_file_is_needed(tmp_path, capsys):
    weights = tmp_path / "backbone.safetensors"
    save_backbone(weights, Backbone("resnet10t", kwargs={"channels": (8, 8, 16, 16)}))
    run = train(tmp_path / "run", weights=str(weights))
    for file in (run / "checkpoints").iterdir():
        file.unlink()
    weights.unlink()
    capsys.readouterr()
    assert main(["transfer", "--resume", str(run)]) == 2
    assert str(weights) in capsys.readouterr().err
