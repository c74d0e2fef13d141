"""A run that was stopped and resumed ends where an uninterrupted one does, bit for bit."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from ssl_toolkit.cli import train
from ssl_toolkit.run_folder import newest_checkpoint
from ssl_toolkit.task import Task


class PowerCut(Exception):
    """Stands for whatever ends a process between two steps."""


def stopping(step):
    """A training step that does not survive the given optimizer step."""

    def training_step(self, batch, batch_idx):
        if self.global_step == step:
            raise PowerCut
        return original(self, batch, batch_idx)

    original = Task.training_step
    return training_step


def final_state(run):
    checkpoint = torch.load(newest_checkpoint(run), weights_only=True)
    return {
        "step": checkpoint["global_step"],
        "weights": checkpoint["state_dict"],
        "optimizer": checkpoint["optimizer_states"],
        "schedule": checkpoint["lr_schedulers"],
    }


def assert_same(first, second):
    """Equality of nested containers, tensors by their bits."""
    assert type(first) is type(second)
    if isinstance(first, torch.Tensor):
        assert torch.equal(first, second)
    elif isinstance(first, dict):
        assert first.keys() == second.keys()
        for key in first:
            assert_same(first[key], second[key])
    elif isinstance(first, (list, tuple)):
        assert len(first) == len(second)
        for a, b in zip(first, second, strict=True):
            assert_same(a, b)
    else:
        assert first == second


@pytest.mark.parametrize("stop_at", [*(pytest.param(step, marks=pytest.mark.slow) for step in (1, 4, 12)), 5, 6])
@pytest.mark.parametrize("options", [[], ["--trainer.accumulate_grad_batches", "2"]], ids=["plain", "accumulated"])
@pytest.mark.slow
def test_resume_after_a_stop_is_exact(recipe, tmp_path, monkeypatch, stop_at, options):
    command = ["-c", recipe, "--checkpoint.every_n_steps", "1", *options]
    if options:
        stop_at //= 2
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train.train("pretrain", [*command, "--out", str(whole)])

    with monkeypatch.context() as patch:
        patch.setattr(Task, "training_step", stopping(stop_at))
        with pytest.raises(PowerCut):
            train.train("pretrain", [*command, "--out", str(broken)])
    train.train("pretrain", ["--resume", str(broken)])

    assert_same(final_state(whole), final_state(broken))


@pytest.mark.slow
def test_kill_minus_nine_amid_an_epoch(recipe, tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "ssl_toolkit", "pretrain"]
    options = ["-c", recipe, "--checkpoint.every_n_steps", "2", "--trainer.max_epochs", "40"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    subprocess.run([*command, *options, "--out", str(whole)], env=environment, check=True, timeout=200)

    process = subprocess.Popen([*command, *options, "--out", str(broken)], env=environment)
    deadline = time.monotonic() + 120
    # an epoch has five steps: stop within the third
    while not (checkpoint := newest_checkpoint(broken)) or int(checkpoint.stem.split("-")[1]) < 12:
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL

    subprocess.run([*command, "--resume", str(broken)], env=environment, check=True, timeout=200)
    assert_same(final_state(whole), final_state(broken))
