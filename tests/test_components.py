"""Every optimizer, schedule and regularizer, found by looking, on both sides: from YAML, saved, and resumed exactly."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from components import ARGUMENTS, OPTIMIZERS, REGULARIZERS, SCHEDULES, each_regularizer
from ssl_toolkit.cli.train import train
from ssl_toolkit.run_folder import newest_checkpoint

SIDES = {"pretrain": "pretext.simclr.SimCLR", "transfer": "downstream.classification.Classification"}
SIDE_ARGUMENTS = {
    "pretrain": {"view": {"size": 16}, "projector_widths": [16, 8]},
    "transfer": {"head": "mlp", "hidden": 8, "dropout": 0.2},
}
BACKBONE = {"name": "resnet10t", "kwargs": {"stem_width": 8, "channels": [8, 8, 8, 8], "drop_path_rate": 0.1}}
DATA = {"source": "procedural", "max_images": 40, "image_size": 16, "batch_size": 8, "cache": "memory"}
HERE = Path(__file__).parent


def write_recipe(tmp_path, command, optimizer="AdamW", scheduled="Constant", regularizers=(), name="run", **trainer):
    """A YAML file for three steps."""
    recipe = {
        "model": {
            "class_path": SIDES[command],
            "init_args": {
                "backbone": BACKBONE,
                **SIDE_ARGUMENTS[command],
                "optimizer": {"class_path": f"ssl_toolkit.optim.{optimizer}"},
                "schedule": {"class_path": f"ssl_toolkit.schedule.{scheduled}"},
                "regularizers": [
                    {"class_path": f"ssl_toolkit.regularization.{each}", "init_args": ARGUMENTS.get(each, {})}
                    for each in regularizers
                ],
            },
        },
        "data": DATA,
        "trainer": {"max_steps": 3, "max_epochs": -1, "accelerator": "cpu", "limit_val_batches": 0, **trainer},
        "checkpoint": {"every_n_steps": 1, "keep": 3},
        "tracker": "none",
    }
    if command == "pretrain":
        recipe["evaluation"] = {"every_n_epochs": 0}
    file = tmp_path / f"{name}.yaml"
    file.write_text(yaml.safe_dump(recipe))
    return file


def run(tmp_path, command, *components, name="run", **settings):
    """Three steps from a YAML file; the run's folder."""
    file = write_recipe(tmp_path, command, *components, name=name, **settings)
    return train(command, ["-c", str(file), "--out", str(tmp_path / name)], quietly=True)


def state(folder):
    return torch.load(newest_checkpoint(folder), weights_only=True)


def assert_resumes_exactly(folder, command):
    """As if it had been stopped after its first step."""
    broken = folder.with_name(folder.name + "-resumed")
    shutil.copytree(folder, broken)
    for step in (2, 3):
        (broken / "checkpoints" / f"step-{step:010d}.ckpt").unlink()
    train(command, ["--resume", str(broken)], quietly=True)
    whole, resumed = state(folder), state(broken)
    assert (whole["global_step"], resumed["global_step"]) == (3, 3)
    for name, tensor in whole["state_dict"].items():
        assert torch.equal(tensor, resumed["state_dict"][name]), name
        assert tensor.isfinite().all(), name
    for first, second in zip(whole["optimizer_states"], resumed["optimizer_states"], strict=True):
        assert first["param_groups"] == second["param_groups"]
        torch.testing.assert_close(first["state"], second["state"], rtol=0, atol=0)


@pytest.mark.parametrize(
    "number",
    [
        pytest.param(each, marks=pytest.mark.slow if each else ())
        for each in range(max(len(OPTIMIZERS), len(SCHEDULES)))
    ],
)
def test_each_optimizer_and_each_schedule_resume_exactly(number, tmp_path):
    command = list(SIDES)[number % 2]
    optimizer, scheduled = OPTIMIZERS[number % len(OPTIMIZERS)], SCHEDULES[number % len(SCHEDULES)]
    assert_resumes_exactly(run(tmp_path, command, optimizer, scheduled), command)


@pytest.mark.nightly
@pytest.mark.timeout(600)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_with_every_schedule_resumes_exactly(optimizer, tmp_path):
    for number, scheduled in enumerate(SCHEDULES):
        command = list(SIDES)[(OPTIMIZERS.index(optimizer) + number) % 2]
        assert_resumes_exactly(run(tmp_path, command, optimizer, scheduled, name=scheduled), command)


@pytest.mark.parametrize("regularizer", each_regularizer())
@pytest.mark.slow
def test_each_regularizer_changes_what_is_learned_on_both_sides_and_resumes_exactly(regularizer, tmp_path):
    for command in SIDES:
        plain, changed = (
            run(tmp_path, command, regularizers=given, name=f"{command}-{len(given)}") for given in ((), (regularizer,))
        )
        weights = [state(each)["state_dict"] for each in (plain, changed)]
        assert weights[0].keys() == weights[1].keys()
        assert any(not torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
        assert_resumes_exactly(changed, command)


@pytest.mark.slow
def test_all_regularizers_together(tmp_path):
    assert_resumes_exactly(run(tmp_path, "transfer", "SGD", regularizers=REGULARIZERS), "transfer")


# bfloat16 on maps of one pixel is beyond torch on a CPU (see the log in CONTRIBUTING.md)
MIXED = {"precision": "bf16-mixed", "accumulate_grad_batches": 2}


@pytest.mark.parametrize("command", SIDES)
@pytest.mark.slow
def test_all_regularizers_in_mixed_precision_with_accumulated_gradients(command, tmp_path, monkeypatch):
    monkeypatch.setitem(BACKBONE, "stem", "small")
    monkeypatch.setitem(DATA, "image_size", 32)
    assert_resumes_exactly(run(tmp_path, command, regularizers=REGULARIZERS, **MIXED), command)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_in_mixed_precision_with_accumulated_gradients(optimizer, tmp_path, monkeypatch):
    monkeypatch.setitem(BACKBONE, "stem", "small")
    monkeypatch.setitem(DATA, "image_size", 32)
    for command in SIDES:
        assert_resumes_exactly(run(tmp_path, command, optimizer, name=command, **MIXED), command)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("command", SIDES)
def test_two_processes_have_the_same_weights_with_each_regularizer_and_resume(command, tmp_path):
    file = write_recipe(tmp_path, command, regularizers=REGULARIZERS, devices=2, strategy="ddp", precision="32-true")
    folder = tmp_path / "run"
    same = ["--trainer.callbacks", '[{"class_path": "same_weights.SameWeights"}]', "--average.kind", "ema"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(HERE), *sys.path])}
    program = [sys.executable, "-m", "ssl_toolkit", command]
    for arguments in (["-c", str(file), "--out", str(folder), *same], ["--resume", str(folder)]):
        if "--resume" in arguments:
            whole = state(folder)
            (folder / "checkpoints" / "step-0000000003.ckpt").unlink()
        done = subprocess.run([*program, *arguments], env=environment, capture_output=True, text=True, timeout=280)
        assert done.returncode == 0, done.stderr[-3000:]
        assert "the weights differ" not in done.stdout + done.stderr
    resumed = state(folder)
    for name, tensor in whole["state_dict"].items():
        assert torch.equal(tensor, resumed["state_dict"][name]), name
