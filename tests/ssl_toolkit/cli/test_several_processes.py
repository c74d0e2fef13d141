"""The command line under several processes: what they compute together is what one computes alone."""

import os
import subprocess
import sys

import pytest
import safetensors.torch
import torch
import yaml

from ssl_toolkit.run_folder import newest_checkpoint
from ssl_toolkit.tracking.metrics_csv import read_metrics

LAUNCHERS = {
    "lightning": [sys.executable, "-m", "ssl_toolkit"],
    "torchrun": [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
                 "-m", "ssl_toolkit"],
}  # fmt: skip


def pretrain(start, *options):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*start, "pretrain", *options], env=environment, timeout=250, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_two_processes_equal_one(launcher, recipe, tmp_path):
    alone, together = tmp_path / "alone", tmp_path / "together"
    options = ["-c", recipe, "--trainer.max_epochs", "1", "--model.backbone.kwargs.drop_path_rate", "0"]
    # small steps of SGD: large ones, or Adam's, let a rounding difference grow where a gradient jumps (ReLU, pooling)
    options += ["--model.optimizer", "SGD", "--model.optimizer.lr", "0.002"]
    pretrain(LAUNCHERS["lightning"], *options, "--out", str(alone))
    two = ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--data.batch_size", "8"]
    said = pretrain(LAUNCHERS[launcher], *options, *two, "--out", str(together))
    assert said.count("report:") == 1  # rank zero speaks for all

    weights = [safetensors.torch.load_file(run / "backbone.safetensors") for run in (alone, together)]
    assert weights[0].keys() == weights[1].keys()
    for name, tensor in weights[0].items():
        torch.testing.assert_close(tensor, weights[1][name], rtol=1e-4, atol=1e-5, msg=name)
    knn = [read_metrics(run)["val/knn_top1"] for run in (alone, together)]
    assert knn[0][-1] == pytest.approx(knn[1][-1], abs=0.12)  # one of nine images, at a tie


@pytest.mark.slow
def test_processes_that_lightning_starts_find_a_folder_that_has_no_name(recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    two = ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--trainer.max_steps", "1"]
    said = pretrain(LAUNCHERS["lightning"], "-c", recipe, *two)
    (run,) = (tmp_path / "runs").iterdir()
    assert f"weights: runs/{run.name}/backbone.safetensors" in said


@pytest.mark.slow
def test_two_processes_agree_on_settings_and_on_a_budget(recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    run = tmp_path / "run"
    two = ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--data.batch_size", "8"]
    trials = ["--speed", "auto", "--budget", "60s"]
    said = pretrain(LAUNCHERS["lightning"], "-c", recipe, *two, *trials, "--out", str(run))
    assert said.count("speed:") == said.count("budget:") == 1
    steps = yaml.safe_load((run / "config.yaml").read_text())["trainer"]["max_steps"]
    assert torch.load(newest_checkpoint(run), weights_only=True)["global_step"] == steps > 10
