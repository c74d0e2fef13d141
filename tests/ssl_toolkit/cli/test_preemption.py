"""Signals: the state of the current step on disk, the process gone, and a run that goes on as if nothing had been.

Several processes, and every moment: tests/reliability/test_signals.py.
"""

import json
import math
import os
import signal
import stat
import subprocess
import sys
import time

import pytest
import torch

from ssl_toolkit.cli.train import train
from ssl_toolkit.run_folder import newest_checkpoint
from ssl_toolkit.task import Task

ALONE = [sys.executable, "-m", "ssl_toolkit", "pretrain"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
# many steps, none of which is saved but for a signal
LONG = ["--checkpoint.every_minutes", "60", "--trainer.log_every_n_steps", "1", "--evaluation.every_n_epochs", "0"]


def start(command, recipe, run, *options, environment=ENVIRONMENT):
    """Starts a run and waits until it has trained some steps."""
    arguments = [*command, "-c", recipe, "--out", str(run), *LONG, *options]
    process = subprocess.Popen(arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + 150
    while not (run / "metrics.csv").is_file() or (run / "metrics.csv").read_text().count("\n") < 4:
        assert process.poll() is None, process.communicate()[0][-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return process


def assert_preempted(process, run, name, status=143):
    asked = time.monotonic()
    said = process.communicate(timeout=120)[0]
    seconds = time.monotonic() - asked
    assert process.returncode == status, said[-3000:]
    left = json.loads((run / "status.json").read_text())
    assert (left["state"], left["reason"]) == ("preempted", name)
    assert int(newest_checkpoint(run).stem.split("-")[1]) == left["step"] > 0
    assert f"--resume {run}" in said
    return seconds


def weights(run):
    return torch.load(newest_checkpoint(run), weights_only=True)["state_dict"]


def assert_same_weights(first, second):
    first, second = weights(first), weights(second)
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


@pytest.mark.guarantee("R4")
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", ["SIGTERM", pytest.param("SIGUSR1", marks=pytest.mark.slow)])
@pytest.mark.slow
def test_a_signal_saves_the_step_and_the_run_goes_on_exactly(recipe, tmp_path, name, reached):
    # bounded by steps and not by time, for a slow machine
    options = ["--trainer.max_epochs", "16"]
    process = start(ALONE, recipe, tmp_path / "stopped", *options)
    process.send_signal(getattr(signal, name))
    seconds = assert_preempted(process, tmp_path / "stopped", name)
    reached(f"one process, {name}: gone within {math.ceil(seconds)} s")

    if name == "SIGTERM":
        train("pretrain", ["-c", recipe, "--out", str(tmp_path / "whole"), *LONG, *options], quietly=True)
        train("pretrain", ["--resume", str(tmp_path / "stopped")], quietly=True)
        assert_same_weights(tmp_path / "whole", tmp_path / "stopped")
        assert json.loads((tmp_path / "stopped" / "status.json").read_text())["state"] == "finished"


@pytest.mark.guarantee("R5")
@pytest.mark.timeout(300)
@pytest.mark.slow
def test_slurm_queues_the_job_once_and_the_same_command_goes_on(recipe, tmp_path, monkeypatch, reached):
    called = tmp_path / "called"
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {called}\n')
    scontrol.chmod(scontrol.stat().st_mode | stat.S_IXUSR)
    slurm = {**ENVIRONMENT, "PATH": f"{scontrol.parent}:{os.environ['PATH']}", "SLURM_JOB_ID": "77"}
    options = ["--trainer.max_epochs", "16"]
    process = start(ALONE, recipe, tmp_path / "run", *options, environment=slurm)
    process.send_signal(signal.SIGUSR1)
    assert_preempted(process, tmp_path / "run", "SIGUSR1")
    assert called.read_text() == "requeue 77\n"

    again = ["-c", recipe, "--out", str(tmp_path / "run"), *LONG, *options]
    with pytest.raises(ValueError, match="holds a run already"):
        train("pretrain", again)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    train("pretrain", again, quietly=True)
    assert newest_checkpoint(tmp_path / "run").stem.endswith("080")
    reached(f"{called.read_text().count('requeue')} requeue, all 80 steps")


@pytest.mark.guarantee("R4")
@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", ["none", pytest.param("ema", marks=pytest.mark.slow)])
@pytest.mark.slow
def test_a_signal_during_validation_is_heeded_there(recipe, tmp_path, monkeypatch, kind):
    command = ["-c", recipe, *LONG, "--data.val_fraction", "0.4", "--trainer.max_epochs", "2", "--average.kind", kind]
    train("pretrain", [*command, "--out", str(tmp_path / "whole")], quietly=True)
    original = Task.validation_step

    def validation_step(self, batch, batch_idx):
        original(self, batch, batch_idx)
        if self.current_epoch == 0 and batch_idx == 0:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Task, "validation_step", validation_step)
        with pytest.raises(SystemExit) as ended:
            train("pretrain", [*command, "--out", str(tmp_path / "stopped")], quietly=True)
    assert ended.value.code == 143
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    train("pretrain", ["--resume", str(tmp_path / "stopped")], quietly=True)
    assert_same_weights(tmp_path / "whole", tmp_path / "stopped")
