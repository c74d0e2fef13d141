"""What a resumed run may change takes effect and is said; what it may not is refused, and the run stays as it was."""

from __future__ import annotations

import shutil

import pytest
import torch
import yaml

from run_comparison import arguments_for, checkpoint
from ssl_toolkit.cli.resume_changes import changed_settings
from ssl_toolkit.cli.train import train
from ssl_toolkit.run_folder import read_config, read_starts
from ssl_toolkit.tracking.metrics_csv import read_metrics
from ssl_toolkit.weights import read_header

STEPS = 4


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """Four steps of a run; an epoch has six."""
    folder = tmp_path_factory.mktemp("begun")
    arguments = arguments_for("SimCLR", folder, {"checkpoint": {"every_n_steps": 1}}, max_steps=STEPS, max_epochs=-1)
    return train("pretrain", [*arguments, "--out", str(folder / "run")], quietly=True)


@pytest.fixture
def run(begun, tmp_path):
    return shutil.copytree(begun, tmp_path / "run")


def resumed(run, *options):
    return train("pretrain", ["--resume", str(run), "--trainer.max_steps", "8", *options], quietly=True)


def contents(run):
    return {file: file.read_bytes() for file in sorted(run.rglob("*")) if file.is_file()}


@pytest.mark.guarantee("R16")
@pytest.mark.parametrize(
    ("option", "value", "found"),
    [
        ("lr", "0.5", lambda group: group["initial_lr"] == 0.5),
        ("weight_decay", "0.25", lambda group: group["weight_decay"] == 0.25 * group["weight_decay_factor"]),
        ("betas", "[0.5, 0.75]", lambda group: tuple(group["betas"]) == (0.5, 0.75)),
        ("eps", "0.125", lambda group: group["eps"] == 0.125),
    ],
)
@pytest.mark.slow
def test_settings_of_the_optimizer_take_effect_and_are_said(run, option, value, found, capsys):
    before = checkpoint(run)["optimizer_states"][0]["param_groups"]
    assert not any(found(group) for group in before if group["decayed"])
    resumed(run, f"--model.optimizer.{option}", value)
    assert all(found(group) for group in checkpoint(run)["optimizer_states"][0]["param_groups"])
    assert f"changed from step {STEPS} on: model.optimizer.{option} {value}, before " in capsys.readouterr().out
    key = f"model.init_args.optimizer.init_args.{option}"
    (change,) = read_header(run / "backbone.safetensors")["changes"]
    assert change["step"] == STEPS
    assert change["changed"].keys() == {key, "trainer.max_steps"}
    assert change["changed"]["trainer.max_steps"] == [STEPS, 8]
    assert change["changed"][key][1] == yaml.safe_load(value)
    assert read_starts(run)[-1]["changed"] == change["changed"]


@pytest.mark.guarantee("R16")
@pytest.mark.slow
def test_the_learning_rate_is_that_of_the_new_settings_from_the_next_step_on(run):
    resumed(run, "--model.optimizer.lr", "0.5")
    rates = read_metrics(run)
    name = next(key for key in rates if key.startswith("train/lr"))
    after = [rate for rate, step in zip(rates[name], rates["step"], strict=True) if step >= STEPS and rate == rate]
    assert 0.05 < max(after) <= 0.5


@pytest.mark.slow
def test_a_change_stays_in_the_history_of_the_next_start(run):
    resumed(run, "--model.optimizer.lr", "0.5")
    resumed(run, "--trainer.max_steps", "9")
    changes = read_header(run / "backbone.safetensors")["changes"]
    assert [each["step"] for each in changes] == [4, 8]
    assert changes[1]["changed"] == {"trainer.max_steps": [8, 9]}


def test_a_plain_resume_changes_nothing(run, capsys):
    train("pretrain", ["--resume", str(run)], quietly=True)
    assert "changed" not in capsys.readouterr().out
    assert "changes" not in read_header(run / "backbone.safetensors")


@pytest.mark.slow
def test_the_temperature_is_said(run, capsys):
    resumed(run, "--model.temperature", "0.3")
    assert "changed from step 4 on: model.temperature 0.3, before 0.5\n" in capsys.readouterr().out


@pytest.mark.guarantee("R16")
@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--seed", "1"], "seed is 1, but the run was begun with 0, and every random choice is drawn from it"),
        (["--model.backbone.name", "resnet18"], "model.backbone.name is resnet18, but"),
        (["--model.projector_widths", "[16, 4]"], r"model.projector_widths is \[16, 4\], but"),
        (["--data.val_fraction", "0.2"], "data.val_fraction is 0.2, but the run was begun with 0.1, and it settles"),
        (["--data.split_seed", "3"], "data.split_seed is 3, but"),
        (["--data.max_images", "40"], "data.max_images is 40, but the run was begun with 60"),
        (["--trainer.accumulate_grad_batches", "2"], "trainer.accumulate_grad_batches is 2, but"),
        (["--average.kind", "ema"], "average.kind is ema, but the run was begun with none"),
        *(
            ([f"--model.optimizer=ssl_toolkit.optim.{name}"], f"model.optimizer is {name}, but the run was .* AdamW")
            for name in ("SGD", "Adam", "LARS", "Lion", "RMSprop", "Adagrad")
        ),
    ],
)
def test_what_a_run_has_been_from_its_first_step_is_refused(run, options, said):
    files = contents(run)
    with pytest.raises(ValueError, match=said) as error:
        resumed(run, *options)
    assert "\n" not in str(error.value)
    assert "begin a new run with another --out" in str(error.value)
    assert contents(run) == files


@pytest.mark.guarantee("R16")
def test_a_start_that_fails_late_leaves_the_run_as_it_was(run, monkeypatch):
    def broken(*_, **__):
        raise ValueError("a checkpoint that does not fit")

    files = contents(run)
    monkeypatch.setattr(torch.optim.AdamW, "load_state_dict", broken)
    with pytest.raises(ValueError, match="does not fit"):
        resumed(run)
    assert contents(run) == files


def test_a_key_that_one_of_the_versions_lacks_is_no_change():
    before = {"seed": 0, "old": 1, "model": {"class_path": "A", "init_args": {"a": 1}}}
    now = {"seed": 0, "new": 1, "model": {"class_path": "A", "init_args": {"a": 2, "b": 3}}}
    assert changed_settings(before, now) == {"model.init_args.a": (1, 2)}
    now["model"]["class_path"] = "B"
    assert changed_settings(before, now) == {"model.class_path": ("A", "B")}


def test_a_run_without_a_checkpoint_begins_with_what_it_is_given(begun, tmp_path):
    run = shutil.copytree(begun, tmp_path / "run", ignore=shutil.ignore_patterns("*.ckpt*"))
    resumed(run, "--seed", "1")
    assert read_config(run)["seed"] == 1
