"""Averaged weights against a plain loop over the weights of each step; the end of a run that no longer improves."""

from pathlib import Path

import pytest
import safetensors.torch
import torch
import yaml

from ssl_toolkit.callbacks import EarlyStopping, WeightAverage
from ssl_toolkit.cli import train
from ssl_toolkit.evaluation import calibrate_batch_norm
from ssl_toolkit.run_folder import newest_checkpoint
from ssl_toolkit.task import Task
from ssl_toolkit.tracking.metrics_csv import read_metrics
from ssl_toolkit.weights import load_backbone, read_header

EMA = ["--average.kind", "ema", "--average.decay", "0.8"]
SWA = ["--average.kind", "swa", "--average.start", "0.5", "--average.every_n_steps", "2"]
STOPPING = ["--early_stopping.patience", "2", "--early_stopping.min_delta"]


def pretrain(recipe, run, *options):
    kept = ["--checkpoint.every_n_steps", "1", "--checkpoint.keep", "99"]
    return train.train("pretrain", ["-c", recipe, "--out", str(run), *kept, *options], quietly=True)


def checkpoint(run, step):
    return torch.load(run / "checkpoints" / f"step-{step:010d}.ckpt", weights_only=True)


def exported(run):
    tensors = safetensors.torch.load_file(run / "backbone.safetensors")
    return {f"backbone.model.{name}": tensor for name, tensor in tensors.items()}


def is_averaged(name):
    return not name.endswith(("num_batches_tracked", ".mean", ".std"))


@pytest.mark.parametrize("accumulated", [1, 2])
@pytest.mark.slow
def test_ema_is_what_a_loop_over_the_weights_gives(recipe, tmp_path, monkeypatch, accumulated):
    first = {}

    def start(self, trainer, task):
        first.update({name: tensor.clone() for name, tensor in task.state_dict().items()})
        on_train_start(self, trainer, task)

    on_train_start = WeightAverage.on_train_start
    monkeypatch.setattr(WeightAverage, "on_train_start", start)
    run = pretrain(recipe, tmp_path / "run", *EMA, "--trainer.accumulate_grad_batches", str(accumulated))
    steps = 15 if accumulated == 1 else 9
    average = {name: tensor.double() for name, tensor in first.items() if is_averaged(name)}
    for step in range(1, steps + 1):
        decay = min(0.8, step / (9 + step))
        weights = checkpoint(run, step)["state_dict"]
        average = {name: decay * old + (1 - decay) * weights[name].double() for name, old in average.items()}
    for name, tensor in exported(run).items():
        if is_averaged(name):
            torch.testing.assert_close(tensor.double(), average[name], rtol=1e-4, atol=1e-6)
    last = checkpoint(run, steps)["state_dict"]
    assert not torch.equal(last["backbone.model.conv1.0.weight"], exported(run)["backbone.model.conv1.0.weight"])


@pytest.mark.parametrize(
    ("start", "every", "steps"),
    [
        (0.5, 2, (9, 11, 13, 15)),
        (0.4, 3, (9, 12, 15)),  # the run's first 0.4 end with step 6, which is not averaged
        (1 / 3, None, (10, 15)),  # nor are the weights after the first of three epochs
    ],
)
@pytest.mark.slow
def test_swa_is_the_mean_of_the_last_part_at_intervals(recipe, tmp_path, start, every, steps):
    options = ["--average.kind", "swa", "--average.start", str(start)]
    options += ["--average.every_n_steps", str(every)] if every else []
    run = pretrain(recipe, tmp_path / "run", *options)
    weights = [checkpoint(run, step)["state_dict"] for step in steps]
    means = {name: torch.stack([each[name].double() for each in weights]).mean(0) for name in weights[0]}
    for name, tensor in exported(run).items():
        if "running" not in name and is_averaged(name):
            torch.testing.assert_close(tensor.double(), means[name], rtol=1e-4, atol=1e-6)
    # as if it had been killed after its last checkpoint
    before = exported(run)
    (run / "backbone.safetensors").unlink()
    train.train("pretrain", ["--resume", str(run)], quietly=True)
    assert_same(before, exported(run))


@pytest.mark.parametrize("images", [10_000, 32])
def test_swa_has_batch_norm_statistics_of_its_own_weights(recipe, tmp_path, monkeypatch, images):
    """For a task without augmentation they are those of a pass over the training images, or over some by chance."""
    model = yaml.safe_load(Path(recipe).read_text())
    model["model"] = {
        "class_path": "downstream.classification.Classification",
        "init_args": {**{key: model["model"]["init_args"][key] for key in ("backbone", "optimizer", "schedule")}},
    }
    model["data"]["labels"] = "folder"
    file = tmp_path / "transfer.yaml"
    file.write_text(yaml.safe_dump(model))
    options = ["-c", str(file), "--out", str(tmp_path / "run"), *SWA, "--trainer.max_epochs", "2"]
    options += ["--average.batchnorm_images", str(images)]
    seen = {}
    monkeypatch.setattr(train, "finish", lambda objects, run: seen.update(vars(objects)))
    run = train.train("transfer", options, quietly=True)
    data, task = seen["data"], seen["model"]
    expected = load_backbone(run / "backbone.safetensors")
    loader = data.loader("train", shuffle=True)

    def view(images, keys):
        task.eval()
        return task.make_views(images, keys)

    calibrate_batch_norm(expected, loader, view, images)
    for name, tensor in expected.state_dict().items():
        if "running" in name:
            torch.testing.assert_close(exported(run)[f"backbone.{name}"], tensor, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_what_is_measured_is_the_average_and_the_training_is_untouched(recipe, tmp_path):
    plain, ema, swa = (
        pretrain(recipe, tmp_path / name, *options) for name, options in (("plain", []), ("ema", EMA), ("swa", SWA))
    )
    states = [checkpoint(run, 15) for run in (plain, ema, swa)]
    for name, tensor in states[0]["state_dict"].items():
        assert torch.equal(tensor, states[1]["state_dict"][name]), name
        assert torch.equal(tensor, states[2]["state_dict"][name]), name
    losses = [[loss for loss in read_metrics(run)["val/loss"] if loss == loss] for run in (plain, ema, swa)]
    assert losses[0] != losses[1]
    assert losses[0][0] == losses[2][0], "the average of SWA begins in the second half"
    assert losses[0][-1] != losses[2][-1]


class PowerCut(Exception):
    pass


def cut_at(monkeypatch, step):
    training_step = Task.training_step

    def stopping(self, batch, batch_idx):
        if self.global_step == step:
            raise PowerCut
        return training_step(self, batch, batch_idx)

    monkeypatch.setattr(Task, "training_step", stopping)


def assert_same(first, second, where=""):
    assert type(first) is type(second), where
    if isinstance(first, torch.Tensor):
        assert torch.equal(first, second), where
    elif isinstance(first, dict):
        assert first.keys() == second.keys(), where
        for key in first:
            assert_same(first[key], second[key], f"{where}/{key}")
    else:
        assert first == second, where


def state(run):
    saved = torch.load(newest_checkpoint(run), weights_only=True)
    own = {key: value for key, value in saved["callbacks"].items() if key in ("WeightAverage", "EarlyStopping")}
    return {"step": saved["global_step"], "weights": saved["state_dict"], **own}


@pytest.mark.parametrize("stop_at", [5, *(pytest.param(step, marks=pytest.mark.slow) for step in (4, 10, 11))])
@pytest.mark.parametrize("options", [[*EMA, *STOPPING, "0"], [*SWA, *STOPPING, "99"]], ids=["ema", "swa and stopping"])
@pytest.mark.slow
def test_resume_is_exact(recipe, tmp_path, stop_at, options):
    options = [*options, "--early_stopping.monitor", "val/loss"]
    whole = pretrain(recipe, tmp_path / "whole", *options)
    with pytest.MonkeyPatch.context() as patch:
        cut_at(patch, stop_at)
        with pytest.raises(PowerCut):
            pretrain(recipe, tmp_path / "broken", *options)
    broken = train.train("pretrain", ["--resume", str(tmp_path / "broken")], quietly=True)
    assert {"WeightAverage", "EarlyStopping"} < state(whole).keys()
    assert_same(state(whole), state(broken))
    assert_same(exported(whole), exported(broken))


@pytest.mark.slow
def test_a_run_that_is_no_better_stops_and_its_best_weights_are_exported(recipe, tmp_path, capsys):
    options = [*STOPPING, "99", "--trainer.max_epochs", "9", "--early_stopping.monitor", "val/knn_top1"]
    run = pretrain(recipe, tmp_path / "run", *options, "--evaluation.every_n_epochs", "1")
    # the first measurement is the best, and two more are no better by 99
    assert newest_checkpoint(run).name == "step-0000000015.ckpt"
    said = capsys.readouterr().out
    assert "stopped early at step 15: the best val/knn_top1" in said
    assert "was measured at step 5, and 2 measurements since are no better; its weights are kept" in said
    assert read_header(run / "backbone.safetensors")["step"] == 5
    best = checkpoint(run, 5)["state_dict"]
    for name, tensor in exported(run).items():
        if name in best:
            assert torch.equal(tensor, best[name]), name
    before = exported(run)
    train.train("pretrain", ["--resume", str(run)], quietly=True)
    assert newest_checkpoint(run).name == "step-0000000015.ckpt", "it stays stopped"
    assert_same(before, exported(run))
    # the schedule was over the planned length
    rates = [rate for rate in read_metrics(run)["train/lr"] if rate == rate]
    assert rates[-1] > 0.5 * max(rates)


@pytest.mark.slow
def test_the_last_weights_are_exported_where_the_best_are_not_asked_for(recipe, tmp_path):
    options = [*STOPPING, "99", "--early_stopping.restore_best", "false", "--early_stopping.monitor", "val/loss"]
    run = pretrain(recipe, tmp_path / "run", *options)
    assert read_header(run / "backbone.safetensors")["step"] == 15
    last = checkpoint(run, 15)["state_dict"]
    assert all(torch.equal(tensor, last[name]) for name, tensor in exported(run).items() if name in last)


@pytest.mark.parametrize("monitor", ["val/loss", "val/knn_top1"])
@pytest.mark.slow
def test_the_best_weights_are_averaged_ones(recipe, tmp_path, monitor):
    options = [*EMA, *STOPPING, "99", "--early_stopping.monitor", monitor, "--evaluation.every_n_epochs", "1"]
    run = pretrain(recipe, tmp_path / "run", *options)
    # the measurement after step 5 is the best, as no later one is better by 99
    assert read_header(run / "backbone.safetensors")["step"] == 5
    kept = checkpoint(run, 5)
    average = kept["callbacks"]["WeightAverage"]["average"]
    for name, tensor in exported(run).items():
        if is_averaged(name):
            torch.testing.assert_close(tensor, average[name])
    first = "backbone.model.conv1.0.weight"
    assert not torch.equal(exported(run)[first], kept["state_dict"][first])


@pytest.mark.slow
def test_a_wrong_name_lists_the_right_ones(recipe, tmp_path):
    with pytest.raises(
        ValueError, match=r"'val/top1', but the run measures val/evaluation_seconds, val/knn_top1.*val/loss"
    ):
        pretrain(recipe, tmp_path / "run", *STOPPING, "0", "--early_stopping.monitor", "val/top1")
    with pytest.raises(ValueError, match=r"there are no validation images: give data\.val_fraction"):
        pretrain(recipe, tmp_path / "other", *STOPPING, "0", "--data.val_fraction", "0")
    assert not (tmp_path / "other").exists()


class FakeTrainer:
    """What early stopping asks of a trainer."""

    class strategy:
        broadcast = staticmethod(lambda value: value)

    def __init__(self):
        self.callback_metrics, self.global_step, self.should_stop = {}, 0, False


@pytest.mark.parametrize(
    ("arguments", "values", "stops_after", "best"),
    [
        ({"monitor": "val/loss"}, [3, 2, 2, 1, 1, 1.5], 6, 1),
        ({"monitor": "val/loss", "min_delta": 0.6}, [3, 2, 1.5, 1.5, 1], 4, 2),
        ({"monitor": "val/top1"}, [0.1, 0.3, 0.2, 0.3], 4, 0.3),
        ({"monitor": "val/loss", "mode": "max"}, [3, 2, 2], 3, 3),
        ({"monitor": "val/loss"}, [float("nan"), float("nan")], 2, None),
    ],
)
def test_patience_and_direction(arguments, values, stops_after, best):
    stopping, trainer = EarlyStopping(patience=2, restore_best=False, **arguments), FakeTrainer()
    for count, value in enumerate(values, start=1):
        trainer.callback_metrics[stopping.monitor] = torch.tensor(float(value))
        for _ in range(2):  # a value is looked at once
            stopping._look(trainer, None)
        assert trainer.should_stop == (count >= stops_after)
        if trainer.should_stop:
            break
    assert stopping._best == (None if best is None else pytest.approx(best))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: WeightAverage(kind="emma"), "one of none, ema, swa, got 'emma'; did you mean 'ema'"),
        (lambda: WeightAverage(decay=1.0), "decay is 1.0, expected at least 0 and less than 1"),
        (lambda: WeightAverage(every_n_steps=0), "every_n_steps is 0, expected at least 1"),
        (lambda: EarlyStopping(patience=0), "patience is 0, expected at least 1, or null"),
        (lambda: EarlyStopping(monitor="train/loss"), "expected a validation metric such as val/loss"),
        (lambda: EarlyStopping(min_delta=-1), "min_delta is -1, expected 0 or more"),
    ],
)
def test_wrong_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()
