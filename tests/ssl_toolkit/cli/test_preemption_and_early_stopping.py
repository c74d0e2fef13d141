"""A signal around the end of an epoch: early stopping misses no measurement, and measures none twice."""

import os
import signal

import pytest
import torch
from safetensors.torch import load_file

from ssl_toolkit.cli.train import train
from ssl_toolkit.run_folder import newest_checkpoint
from ssl_toolkit.task import Task
from ssl_toolkit.tracking.metrics_csv import read_metrics

# 54 images to train on, 3 steps an epoch, and 36 to validate with, in 3 batches; the end is the 9th step
OPTIONS = [
    "--data.val_fraction", "0.4", "--early_stopping.patience", "99", "--evaluation.every_n_epochs", "1",
    "--checkpoint.every_minutes", "60", "--trainer.log_every_n_steps", "1",
]  # fmt: skip
EPOCHS, STEPS = ["--trainer.max_epochs", "3"], ["--trainer.max_epochs", "-1", "--trainer.max_steps", "9"]
WHOLE = {}


def pretrain(recipe, run, *options):
    return train("pretrain", ["-c", recipe, "--out", str(run), *OPTIONS, *options], quietly=True)


def outcome(run):
    """What early stopping knows, the validation's figures, and the exported weights."""
    stopping = torch.load(newest_checkpoint(run), weights_only=True)["callbacks"]["EarlyStopping"]
    metrics = read_metrics(run)
    rows = {
        name: [(step, value) for step, value in zip(metrics["step"], metrics[name], strict=True) if value == value]
        for name in ("val/loss", "val/pair_top1", "val/knn_top1", "val/rank_me")
    }
    return stopping, rows, load_file(run / "backbone.safetensors")


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("monitor", "length", "where", "epoch", "batch"),
    [
        ("val/loss", EPOCHS, "training_step", 0, 2),
        ("val/loss", STEPS, "training_step", 2, 2),
        slow("val/knn_top1", EPOCHS, "validation_step", 1, 1),
        slow("val/knn_top1", EPOCHS, "training_step", 1, 2),
        slow("val/loss", EPOCHS, "training_step", 2, 2),
        slow("val/loss", EPOCHS, "validation_step", 0, 0),
        slow("val/loss", EPOCHS, "validation_step", 1, 2),
        slow("val/loss", STEPS, "validation_step", 2, 1),
        slow("val/knn_top1", STEPS, "training_step", 2, 2),
    ],
)
@pytest.mark.slow
def test_no_measurement_is_missed(recipe, tmp_path, monkeypatch, monitor, length, where, epoch, batch):
    options = [*length, "--early_stopping.monitor", monitor]
    if monitor not in WHOLE:
        WHOLE[monitor] = outcome(pretrain(recipe, tmp_path / "whole", *EPOCHS, *options[-2:]))
    original = getattr(Task, where)

    def step(self, found, batch_idx):
        if (self.current_epoch, batch_idx) == (epoch, batch):
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, found, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(Task, where, step)
        with pytest.raises(SystemExit) as ended:
            pretrain(recipe, tmp_path / "stopped", *options)
    assert ended.value.code == 143
    assert newest_checkpoint(tmp_path / "stopped").stem == f"step-{3 * epoch + 3:010d}"
    train("pretrain", ["--resume", str(tmp_path / "stopped")], quietly=True)

    (stopping, rows, weights), (expected, expected_rows, expected_weights) = (
        outcome(tmp_path / "stopped"),
        WHOLE[monitor],
    )
    assert rows == expected_rows
    assert len(rows["val/loss"]) == 3
    best, expected_best = stopping.pop("best_weights"), dict(expected).pop("best_weights")
    assert stopping == {name: value for name, value in expected.items() if name != "best_weights"}
    assert best.keys() == expected_best.keys()
    assert all(torch.equal(tensor, expected_best[name]) for name, tensor in best.items())
    assert all(torch.equal(tensor, expected_weights[name]) for name, tensor in weights.items())
