"""A loss or gradient that is not finite: the run stops before the weights change, or leaves the step out."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ssl_toolkit.cli import main
from ssl_toolkit.cli.train import train
from ssl_toolkit.errors import RunFailed
from ssl_toolkit.run_folder import newest_checkpoint
from ssl_toolkit.task import Task

RECIPE = {
    "model": {
        "class_path": "downstream.classification.Classification",
        "init_args": {
            "backbone": {"name": "resnet10t", "kwargs": {"channels": [8, 8, 8, 8], "stem_width": 8}},
            "optimizer": {"class_path": "ssl_toolkit.optim.AdamW", "init_args": {"lr": 0.01}},
            "schedule": {"class_path": "ssl_toolkit.schedule.Constant"},
        },
    },
    "data": {"source": "procedural", "max_images": 60, "image_size": 16, "batch_size": 8, "cache": "memory"},
    "trainer": {"max_epochs": -1, "max_steps": 6, "accelerator": "cpu", "limit_val_batches": 0},
    "checkpoint": {"every_n_steps": 1, "keep": 9},
    "tracker": "none",
}


@pytest.fixture
def command(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text(json.dumps(RECIPE))
    return ["-c", str(file), "--out", str(tmp_path / "run")]


def spoil(monkeypatch, what, batches):
    """Makes the loss, or a gradient alone, of some batches not finite."""
    original = Task.training_step
    seen = []

    def training_step(self, batch, batch_idx):
        loss = original(self, batch, batch_idx)
        seen.append(batch_idx)
        if len(seen) - 1 not in batches:
            return loss
        if what == "gradient":
            weight = self.backbone.model.layer2[0].conv1.weight
            # its value is 0, its derivative infinite
            return loss + (weight.flatten()[:1] - weight.flatten()[:1].detach()).abs().sqrt().sum()
        return loss * float(what)

    monkeypatch.setattr(Task, "training_step", training_step)


@pytest.mark.guarantee("R11")
@pytest.mark.parametrize("what", ["nan", "inf", "gradient"])
def test_a_run_stops_before_the_weights_change(command, tmp_path, monkeypatch, what, capsys, reached):
    spoil(monkeypatch, what, {3})
    assert main(["transfer", *command]) == 1
    said = capsys.readouterr().err
    assert said.count("error:") == 1
    assert all(words in said for words in ("step 4: ", "(images ", "--nonfinite.skip"))
    assert (
        "the gradient of backbone.model.layer2.0.conv1.weight" if what == "gradient" else f"the loss is {what}"
    ) in said

    checkpoint = torch.load(newest_checkpoint(tmp_path / "run"), weights_only=True)
    assert checkpoint["global_step"] == 3
    assert all(tensor.isfinite().all() for tensor in checkpoint["state_dict"].values())
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert (status["state"], status["step"]) == ("failed", 3)
    assert "step 4" in status["reason"]
    reached(f"{what}: stopped in its step, the checkpoint of step {checkpoint['global_step']} is finite")


@pytest.mark.guarantee("R11")
@pytest.mark.slow
@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_one_bad_rank_of_two_stops_both_before_their_weights_change(command, tmp_path, what, reached):
    bad = json.dumps([{"class_path": "nonfinite_rank.NonFiniteRank", "init_args": {"what": what}}])
    two = ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--trainer.callbacks", bad]
    here = str(Path(__file__).parents[2])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([here, *sys.path])}
    start = [sys.executable, "-m", "ssl_toolkit", "transfer", *command, *two]
    done = subprocess.run(start, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 1, done.stderr[-3000:]
    assert "step 4: " in done.stderr
    checkpoint = torch.load(newest_checkpoint(tmp_path / "run"), weights_only=True)
    assert checkpoint["global_step"] == 3
    assert all(tensor.isfinite().all() for tensor in checkpoint["state_dict"].values())
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "failed"
    reached(f"{what} of one rank of two: both stopped in its step, the checkpoint before it is finite")


@pytest.mark.parametrize("what", ["nan", "gradient"])
@pytest.mark.parametrize("every_n_steps", [1, 9])
@pytest.mark.parametrize("bad", [3, 4, 5])
def test_what_a_gpu_tells_a_step_later_comes_in_time(command, tmp_path, monkeypatch, what, every_n_steps, bad, capsys):
    """As if the processor were ahead of a GPU: at the bad step it does not know yet."""
    from ssl_toolkit.callbacks import nonfinite

    monkeypatch.setattr(nonfinite, "_is_behind", lambda device: True)
    weights = []

    def note(self, trainer, module, *_):
        weights.append([each.detach().clone() for each in module.parameters()])

    monkeypatch.setattr(nonfinite.NonFinite, "on_train_batch_end", note)
    spoil(monkeypatch, what, {bad})
    options = ["--data.max_images", "50", "--checkpoint.every_n_steps", str(every_n_steps)]
    assert main(["transfer", *command, *options]) == 1
    said = capsys.readouterr().err
    assert said.count("error:") == 1
    loss = "the loss is nan and " if what == "nan" else ""
    assert f"step {bad + 1}: {loss}a gradient is not finite (images " in said
    # the bad step changed no weight, and none came after it
    assert all(torch.equal(*pair) for pair in zip(weights[bad - 1], weights[-1], strict=True))
    assert any(not torch.equal(*pair) for pair in zip(weights[bad - 2], weights[bad - 1], strict=True))
    newest = newest_checkpoint(tmp_path / "run")
    assert (newest is not None) == (every_n_steps == 1)
    if newest:
        checkpoint = torch.load(newest, weights_only=True)
        assert checkpoint["global_step"] == bad
        assert all(tensor.isfinite().all() for tensor in checkpoint["state_dict"].values())
    assert (tmp_path / "run" / "backbone.safetensors").exists() == (bad >= 5)  # the last of an epoch, known after it


def test_a_healthy_run_is_the_same_when_a_gpu_tells_a_step_later(command, tmp_path, monkeypatch):
    from ssl_toolkit.callbacks import nonfinite

    train("transfer", command, quietly=True)
    monkeypatch.setattr(nonfinite, "_is_behind", lambda device: True)
    train("transfer", [*command[:3], str(tmp_path / "other")], quietly=True)
    first, second = (
        torch.load(newest_checkpoint(tmp_path / run), weights_only=True)["state_dict"] for run in ("run", "other")
    )
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_steps_left_out_leave_no_trace_and_are_counted_over_a_resume(command, tmp_path, monkeypatch):
    accumulated = ["--trainer.accumulate_grad_batches", "2", "--trainer.max_steps", "3"]
    with monkeypatch.context() as patch:
        spoil(patch, "nan", {3})  # the second batch of the second step
        train("transfer", [*command, *accumulated, "--nonfinite.skip", "1"], quietly=True)
    folder = tmp_path / "run" / "checkpoints"
    states = [torch.load(folder / f"step-{step:010d}.ckpt", weights_only=True)["state_dict"] for step in (1, 2, 3)]
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name]), name
    assert any(not torch.equal(tensor, states[2][name]) for name, tensor in states[1].items())

    for step in (2, 3):
        (folder / f"step-{step:010d}.ckpt").unlink()
    spoil(monkeypatch, "nan", {0, 2})  # one is left out again, one is too many
    with pytest.raises(RunFailed, match="step 3: the loss is nan"):
        train("transfer", ["--resume", str(tmp_path / "run")], quietly=True)


@pytest.mark.slow
def test_a_healthy_run_is_not_changed(command, tmp_path, monkeypatch):
    from ssl_toolkit.callbacks import NonFinite

    train("transfer", command, quietly=True)
    monkeypatch.setattr(NonFinite, "on_before_optimizer_step", lambda *_: None)
    train("transfer", [*command[:3], str(tmp_path / "other")], quietly=True)
    first, second = (
        torch.load(newest_checkpoint(tmp_path / run), weights_only=True)["state_dict"] for run in ("run", "other")
    )
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    assert not any(math.isnan(float(tensor.float().sum())) for tensor in first.values())


def test_a_wrong_number_is_named(command):
    with pytest.raises(ValueError, match=r"nonfinite\.skip is -1"):
        train("transfer", [*command, "--nonfinite.skip", "-1"])
