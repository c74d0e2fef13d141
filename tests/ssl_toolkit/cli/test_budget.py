from __future__ import annotations

import random
import time

import pytest
import torch
import yaml

from pretext.simclr import SimCLR
from ssl_toolkit.augment import RandomView
from ssl_toolkit.callbacks import OnlineEvaluation
from ssl_toolkit.data import ImageData
from ssl_toolkit.modules.backbone import Backbone
from ssl_toolkit.optim import SGD
from ssl_toolkit.schedule import Cosine
from ssl_toolkit.tuning.time_budget import Costs, measure, to_seconds


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("60min", 3600), ("1.5h", 5400), ("2 d", 172_800), (".5m", 30), ("10 MIN", 600)]
)
def test_times(text, seconds):
    assert to_seconds(text) == seconds


@pytest.mark.parametrize("text", ["60", "0min", "-5min", "an hour", "5 weeks", "", "1h30m"])
def test_what_is_no_time_is_refused(text):
    with pytest.raises(ValueError, match=r"90s, 60min, 1\.5h or 2d"):
        to_seconds(text)


def test_steps_by_hand():
    # an epoch of ten steps takes 10 s, 5 s of validation and half an evaluation of 10 s; one evaluation comes last
    assert Costs(1.0, 10, 5.0, 10.0, 2).steps_within(110) == 50
    assert Costs(0.5, 10, 0.0, 0.0, 0).steps_within(10) == 20
    with pytest.raises(ValueError, match="too little for one step of 3 s"):
        Costs(3.0, 10, 0.0, 0.0, 0).steps_within(2)


def test_the_steps_never_take_longer_than_the_budget_and_hardly_less():
    draw = random.Random(0)
    for _ in range(200):
        costs = Costs(draw.uniform(0.01, 1), draw.randint(1, 100), draw.uniform(0, 9), draw.uniform(0, 9),
                      draw.randint(0, 4))  # fmt: skip
        seconds = draw.uniform(500, 5000)
        steps = costs.steps_within(seconds)
        epochs = steps // costs.steps_per_epoch
        evaluations = 1 + epochs // costs.every_n_epochs if costs.every_n_epochs else 0
        taken = steps * costs.step + epochs * costs.validation + evaluations * costs.evaluation
        assert taken <= seconds
        largest = costs.steps_per_epoch * costs.step + costs.validation + 2 * costs.evaluation
        assert taken >= seconds - 1.1 * largest


class SlowSimCLR(SimCLR):
    """Takes a known time."""

    def loss(self, views, context):
        time.sleep(0.05)
        return super().loss(views, context)


def test_a_trial_measures_what_a_step_takes():
    torch.manual_seed(0)
    backbone = Backbone("resnet10t", kwargs={"channels": (4, 4, 8, 8), "stem_width": 4})
    task = SlowSimCLR(backbone=backbone, view=RandomView(size=16), optimizer=SGD(lr=0.01), schedule=Cosine())
    data = ImageData(source="procedural", max_images=90, image_size=16, batch_size=8, cache="memory")
    data.setup("fit")
    arguments = {"accelerator": "cpu", "max_epochs": 3, "accumulate_grad_batches": 2, "check_val_every_n_epoch": 2}
    costs = measure(task, data, arguments, OnlineEvaluation(every_n_epochs=3), seconds=0.2)
    assert 2 * 0.05 < costs.step < 2 * 5
    assert costs.steps_per_epoch == 10 / 2
    # nine validation images are two batches, in every other epoch
    assert 2 * 0.05 / 2 < costs.validation < 5
    assert 0 < costs.evaluation < 20
    assert costs.every_n_epochs == 3


@pytest.mark.slow
def test_the_command_line_trains_what_fits(recipe, tmp_path, monkeypatch, capsys):
    from ssl_toolkit.cli import autotune_trials, main

    monkeypatch.setattr(autotune_trials, "measure", lambda *_: Costs(100.0, 5, 0.0, 0.0, 0))
    run = tmp_path / "run"
    assert main(["pretrain", "-c", recipe, "--budget", "30min", "--out", str(run)]) == 0
    # what preparing takes is taken off
    assert "17 steps, 3.4 epochs" in capsys.readouterr().out
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert (config["trainer"]["max_steps"], config["trainer"]["max_epochs"]) == (17, -1)
    assert "budget" not in config
    assert main(["pretrain", "--resume", str(run), "--budget", "30min"]) == 2
    assert "a new run" in capsys.readouterr().err
    assert main(["pretrain", "-c", recipe, "--budget", "50s", "--out", str(tmp_path / "short")]) == 2
    assert "too little for one step of 100 s" in capsys.readouterr().err
    assert not (tmp_path / "short").exists()
