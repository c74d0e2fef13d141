"""The health monitor of a run: silent when all is well, heard when it is not, and without effect on the run."""

import importlib
import json
import math
from types import SimpleNamespace

import pytest
import torch
import yaml

from ssl_toolkit.augment import RandomView
from ssl_toolkit.cli.train import train
from ssl_toolkit.health.collapse import Extent
from ssl_toolkit.health.curves import read_curves
from ssl_toolkit.health.monitor import HealthMonitor
from ssl_toolkit.modules import Backbone
from ssl_toolkit.optim import AdamW
from ssl_toolkit.run_folder import newest_checkpoint
from ssl_toolkit.schedule import Constant
from ssl_toolkit.task import Task
from ssl_toolkit.tracking.metrics_csv import read_metrics

FIGURES = ("update_ratio", "gradient_norm", "dead_units", "feature_spread", "feature_rank")
FALLING = [2.0 * math.exp(-step / 40) + 0.1 for step in range(100)]


def recipe(tmp_path, **model):
    arguments = {
        "backbone": {
            "name": "resnet10t",
            "kwargs": {"stem_width": 8, "channels": [8, 8, 8, 16], "drop_path_rate": 0.1},
        },
        "head": "mlp",
        "hidden": 16,
        "dropout": 0.2,
        "optimizer": {"class_path": "ssl_toolkit.optim.AdamW", "init_args": {"lr": 0.002}},
        "schedule": {"class_path": "ssl_toolkit.schedule.Cosine"},
        **model,
    }
    text = {
        "model": {"class_path": "downstream.classification.Classification", "init_args": arguments},
        "data": {"source": "procedural", "max_images": 80, "image_size": 16, "batch_size": 16, "cache": "memory"},
        "trainer": {"max_steps": 6, "max_epochs": -1, "accelerator": "cpu", "log_every_n_steps": 1},
        "checkpoint": {"every_n_steps": 1, "keep": 6},
        "tracker": "none",
    }
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(text))
    return str(file)


def run(tmp_path, name, *options, **model):
    return train("transfer", ["-c", recipe(tmp_path, **model), "--out", str(tmp_path / name), *options], quietly=True)


def state(folder):
    return torch.load(newest_checkpoint(folder), weights_only=True)


@pytest.mark.parametrize("options", [[], ["--trainer.accumulate_grad_batches", "2"]])
@pytest.mark.slow
def test_a_run_with_it_is_the_same_bit_for_bit_and_it_is_silent(options, tmp_path, capsys):
    watched = run(tmp_path, "watched", "--watch.every_n_steps", "2", *options)
    plain = run(tmp_path, "plain", "--watch.every_n_steps", "0", *options)
    one, other = state(watched), state(plain)
    for name, tensor in one["state_dict"].items():
        assert torch.equal(tensor, other["state_dict"][name]), name
    first, second = (each["optimizer_states"][0]["state"] for each in (one, other))
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    assert "watch" not in capsys.readouterr().out
    metrics, without = read_metrics(watched), read_metrics(plain)
    losses = [torch.tensor(each["train/loss"]) for each in (metrics, without)]
    torch.testing.assert_close(*losses, rtol=0, atol=0, equal_nan=True)
    logged = {f"train/{name}" for name in FIGURES}
    assert logged <= set(metrics)
    assert not logged & set(without)


@pytest.mark.slow
def test_its_figures_survive_a_resume(tmp_path):
    whole = run(tmp_path, "whole", "--watch.every_n_steps", "2")
    stopped = run(tmp_path, "stopped", "--watch.every_n_steps", "2")
    for step in (4, 5, 6):
        (stopped / "checkpoints" / f"step-{step:010d}.ckpt").unlink()
    train("transfer", ["--resume", str(stopped)], quietly=True)
    for name in FIGURES:
        first, second = (read_metrics(each)[f"train/{name}"] for each in (whole, stopped))
        torch.testing.assert_close(torch.tensor(first), torch.tensor(second), rtol=0, atol=0, equal_nan=True)


@pytest.mark.slow
def test_the_update_ratio_is_that_of_the_checkpoints(tmp_path):
    folder = run(tmp_path, "run", "--watch.every_n_steps", "2")
    before, after = (
        torch.load(folder / "checkpoints" / f"step-{step:010d}.ckpt", weights_only=True)["state_dict"]
        for step in (1, 2)
    )
    ratios = [
        float((after[name] - before[name]).norm() / before[name].norm())
        for name in before
        if before[name].ndim > 1 and before[name].any()
    ]
    logged = [value for value in read_metrics(folder)["train/update_ratio"] if math.isfinite(value)]
    # of an even number of layers the median is the mean of the two in the middle
    assert logged[0] == pytest.approx(sorted(ratios)[len(ratios) // 2], rel=0.5)


@pytest.mark.parametrize(("lr", "word"), [(2.0, "too large"), (2e-7, "too small")])
@pytest.mark.slow
def test_a_wrong_rate_is_said_once_and_again_at_the_end(lr, word, tmp_path, capsys):
    optimizer = {"class_path": "ssl_toolkit.optim.AdamW", "init_args": {"lr": lr, "weight_decay": 0.0}}
    schedule = {"class_path": "ssl_toolkit.schedule.Constant"}
    run(tmp_path, "run", "--watch.every_n_steps", "1", optimizer=optimizer, schedule=schedule)
    lines = [line for line in capsys.readouterr().out.splitlines() if "learning rate is" in line]
    assert [line.partition(":")[0] for line in lines] == ["watch", "watch, again"]
    assert all(word in line for line in lines)


@pytest.mark.slow
def test_dead_units_and_collapse_are_said(tmp_path, capsys):
    dead = {"class_path": "ssl_toolkit.init.Constant", "init_args": {"pattern": r"head\.1\.bias", "value": -100.0}}
    flat = {"class_path": "ssl_toolkit.init.Zeros", "init_args": {"pattern": r"bn\d\.weight|downsample.*2\.weight"}}
    keep = {"class_path": "ssl_toolkit.init.Keep", "init_args": {"pattern": ""}}
    one = {"class_path": "ssl_toolkit.init.Constant", "init_args": {"pattern": r"layer4.*bias", "value": 1.0}}
    run(tmp_path, "run", "--watch.every_n_steps", "1", init=[keep, dead, flat, one],
        optimizer={"class_path": "ssl_toolkit.optim.AdamW", "init_args": {"lr": 0.0001}})  # fmt: skip
    said = capsys.readouterr().out
    assert "are 0 for the whole batch and learn nothing" in said
    assert "features have collapsed" in said


@pytest.mark.slow
def test_a_step_that_is_left_out_is_not_looked_at(tmp_path, monkeypatch):
    original = Task.training_step

    def training_step(self, batch, batch_idx):
        loss = original(self, batch, batch_idx)
        return loss * math.nan if self.global_step == 1 else loss

    with monkeypatch.context() as patch:
        patch.setattr(Task, "training_step", training_step)
        skipped = run(tmp_path, "skipped", "--watch.every_n_steps", "2", "--nonfinite.skip", "1")
    spreads = [value for value in read_metrics(skipped)["train/feature_spread"] if math.isfinite(value)]
    assert len(spreads) == 3, "it is looked at from step 4 on"
    assert spreads[0] == spreads[1] != spreads[2]


@pytest.mark.slow
def test_findings_are_kept_where_the_report_finds_them_and_forgotten_with_their_steps(tmp_path):
    optimizer = {"class_path": "ssl_toolkit.optim.AdamW", "init_args": {"lr": 2.0, "weight_decay": 0.0}}
    schedule = {"class_path": "ssl_toolkit.schedule.Constant"}
    folder = run(tmp_path, "run", "--watch.every_n_steps", "2", optimizer=optimizer, schedule=schedule)
    found = json.loads((folder / "watch.json").read_text())
    assert "learning rate" in [each["kind"] for each in found]
    assert "The learning rate is too large" in (folder / "report.html").read_text()
    # a killed run: its checkpoint is of a step before anything was found
    for step in (2, 3, 4, 5, 6):
        (folder / "checkpoints" / f"step-{step:010d}.ckpt").unlink()
    train("transfer", ["--resume", str(folder), "--watch.every_n_steps", "0"], quietly=True)
    assert not (folder / "watch.json").exists()


def test_curves_by_hand():
    rising = [1.0, 0.6, 0.5, 0.52, 0.58, 0.66, 0.75, 0.83]
    found = read_curves(FALLING, rising)
    assert found is not None
    assert found.kind == "overfitting"
    assert "after 3 of 8 epochs" in found.what
    flat = read_curves([2.08 + 0.01 * (-1) ** step for step in range(100)], [2.08] * 8)
    assert flat is not None
    assert flat.kind == "underfitting"
    level = [2.08 + 0.01 * (-1) ** step for step in range(100)]
    assert read_curves(level, [], steps=1000) is not None
    assert read_curves(level, [], steps=999) is None, "a slow start"
    assert read_curves(FALLING, [1.0, 0.6, 0.5, 0.45, 0.43, 0.42, 0.42, 0.43]) is None
    assert read_curves(FALLING, []) is None
    # noise is no rise
    assert read_curves(FALLING, [1.0, 0.8, 0.55, 0.75, 0.6, 0.72, 0.58, 0.7, 0.6, 0.7]) is None
    # where the training loss rises, too, the run has gone wrong, but not by overfitting
    bent = [2.0 - 0.03 * step for step in range(40)] + [0.8 + 0.01 * step for step in range(60)]
    assert read_curves(bent, rising) is None
    assert read_curves(FALLING[:10], rising) is None
    assert read_curves([math.nan] * 50, [math.nan] * 10) is None


@pytest.mark.parametrize(
    ("task", "by_rank"),
    [
        ("downstream.classification.Classification", False),
        ("downstream.regression.Regression", False),
        ("pretext.rotation.Rotation", True),
        ("pretext.supcon.SupCon", False),
    ],
)
def test_few_dimensions_are_a_fault_only_where_there_are_no_labels(task, by_rank):
    """Two classes, or one number, need one dimension."""
    module, _, name = task.rpartition(".")
    cls = getattr(importlib.import_module(module), name)
    view = {"view": RandomView(24)} if module.startswith("pretext") else {}
    one = cls(backbone=Backbone("resnet10t"), optimizer=AdamW(), schedule=Constant(), **view)
    assert one.is_supervised != by_rank
    monitor = HealthMonitor(every_n_steps=1)
    monitor._outputs = SimpleNamespace(extents=lambda: {"feature": Extent(spread=0.9, rank=1.5, most=256)})
    trainer = SimpleNamespace(global_step=9, is_global_zero=False, default_root_dir=".")
    monitor._judge_extents(trainer, one)
    assert ("dimensional collapse of features" in monitor.findings) == by_rank
