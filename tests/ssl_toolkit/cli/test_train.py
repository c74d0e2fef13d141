"""What a training command does beyond the training itself."""

import csv
import os
from collections import Counter

import pytest
import torch
from PIL import Image

from run_comparison import arguments_for
from ssl_toolkit.cli import autotune_trials, prepare, train
from ssl_toolkit.data.procedural import ProceduralSource
from ssl_toolkit.distributed import ranks
from ssl_toolkit.run_folder import read_config
from ssl_toolkit.tuning import autotune
from ssl_toolkit.tuning.time_budget import Costs


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        pytest.param([], [4, 9, 14], marks=pytest.mark.slow),
        (["--trainer.max_steps", "2"], [1]),
        pytest.param(["--trainer.log_every_n_steps", "3"], [2, 5, 8, 11, 14], marks=pytest.mark.slow),
    ],
)
def test_a_short_run_has_curves_too(options, steps, recipe, tmp_path):
    train.train("pretrain", ["-c", recipe, "--out", str(tmp_path / "run"), *options], quietly=True)
    with (tmp_path / "run" / "metrics.csv").open() as file:
        assert [int(row["step"]) for row in csv.DictReader(file) if row["train/loss"]] == steps


def test_a_scaled_rate_is_said_and_written_into_the_resolved_configuration(recipe, tmp_path, capsys):
    options = ["--data.batch_size", "8", "--model.lr_scaling", "linear", "--model.reference_batch_size", "4"]
    options += ["--trainer.accumulate_grad_batches", "2", "--model.optimizer.lr", "0.01", "--trainer.max_steps", "1"]
    run = train.train("pretrain", ["-c", recipe, "--out", str(tmp_path / "run"), *options], quietly=True)
    said = "lr 0.04: 0.01 for 4 images, linear to 16 (batches of 8, 1 process, 2 accumulated)"
    assert said in capsys.readouterr().out
    written = read_config(run)["model"]["init_args"]
    assert (written["optimizer"]["init_args"]["lr"], written["lr_scaling"]) == (0.04, "none")


def test_files_that_are_not_read_are_counted_at_the_start_and_in_the_report(recipe, tmp_path, capsys):
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(40):
        Image.new("RGB", (32, 32), (number, 9, 9)).save(folder / f"{number}.png")
    for number in range(7):
        (folder / f"{number}.heic").write_bytes(b"")
    arguments = ["-c", recipe, "--out", str(tmp_path / "run"), "--data.source", "folder", "--data.path", str(folder)]
    train.train("pretrain", [*arguments, "--data.max_images", "null", "--trainer.max_steps", "1"], quietly=True)
    said = "not read: 7 .heic (convert what is an image to PNG or TIFF)"
    assert f"36 train, 4 val, 0 test images; {said}" in capsys.readouterr().out
    assert f"Files {said}." in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")


def test_a_forgotten_initialisation_is_found_before_the_folder_is_made(recipe, tmp_path):
    file = tmp_path / "init.yaml"
    file.write_text("model: {init_args: {init: [{class_path: ssl_toolkit.init.Kaiming, init_args: {pattern: ''}}]}}")
    with pytest.raises(ValueError, match=r"nothing is said of .* and \d+ more \(of one dimension"):
        train.train("pretrain", ["-c", recipe, "-c", str(file), "--out", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_speed_auto_settles_what_the_command_line_leaves_open(recipe, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    measured = []

    def measure(task, data, arguments):
        measured.append((arguments["precision"], task.memory_format, task.forward_passes))
        return 1.0 + (arguments["precision"] != "32-true") + (task.memory_format == "channels_last")

    monkeypatch.setattr(autotune_trials, "measure_batch", measure)
    monkeypatch.setattr(autotune, "has_native_bf16", lambda device: True)
    monkeypatch.setattr(autotune, "threads_are_chosen", lambda: True)

    def settings(run, *options):
        measured.clear()
        train.train("pretrain", ["-c", recipe, "--speed", "auto", "--out", str(tmp_path / run), *options], quietly=True)
        config = read_config(tmp_path / run)
        assert "speed" not in config
        return config["trainer"]["precision"], config["model"]["init_args"]["memory_format"]

    assert settings("first") == ("32-true", "contiguous")
    assert len(measured) == 4
    assert "speed: precision 32-true, memory_format contiguous, forward_passes 1" in capsys.readouterr().out
    assert settings("second") == ("32-true", "contiguous")
    assert not measured  # kept
    assert settings("third", "--model.memory_format", "channels_last") == ("32-true", "channels_last")
    assert len(measured) == 3
    rest = ["--model.memory_format", "contiguous", "--trainer.precision", "bf16-mixed", "--model.forward_passes", "1"]
    assert settings("fourth", *rest) == ("bf16-mixed", "contiguous")
    assert not measured  # nothing is left open
    with pytest.raises(ValueError, match="--speed is for a new run"):
        train.train("pretrain", ["--resume", str(tmp_path / "first"), "--speed", "auto"])


@pytest.mark.slow
def test_images_are_decoded_once_and_a_task_is_built_again_only_where_it_must_be(recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(autotune_trials, "measure_batch", lambda task, *_: 1.0 + (task.forward_passes == 1))
    monkeypatch.setattr(autotune_trials, "measure", lambda *_: Costs(1.0, 5, 0.0, 0.0, 0))
    monkeypatch.setattr(autotune, "threads_are_chosen", lambda: True)
    read, built = Counter(), []
    original, build = ProceduralSource.read_many, prepare.build_task

    def counted(self, indices):
        read.update(indices)
        return original(self, indices)

    monkeypatch.setattr(ProceduralSource, "read_many", counted)
    for module in (prepare, autotune_trials):
        monkeypatch.setattr(module, "build_task", lambda *arguments: built.append(build(*arguments)) or built[-1])
    trials = ["--speed", "auto", "--budget", "90s", "--trainer.precision", "32-true", "--data.cache", "memory"]
    run = train.train("pretrain", ["-c", recipe, *trials, "--out", str(tmp_path / "run")], quietly=True)
    config = read_config(run)
    assert config["model"]["init_args"]["forward_passes"] == 2
    assert config["trainer"]["max_steps"] > 30
    # a few are looked at before, to say how much memory all of them will take
    assert sum(count > 1 for count in read.values()) == 32
    assert set(read.values()) <= {1, 2}
    # one for each trial, one with what was found, and one after the trial of the budget, which has trained that
    assert len(built) == 3 + 1 + 1


@pytest.fixture
def _threads(monkeypatch):
    """As if there were four cores; the threads are as before when it is over."""
    before = torch.get_num_threads()
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # what is set here is unset again
    monkeypatch.setattr(ranks, "num_cores", lambda: 4)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("_threads")
@pytest.mark.slow
def test_the_quickest_number_of_threads_is_used_and_written_down(recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(autotune, "threads_are_chosen", lambda: False)
    monkeypatch.setattr(autotune, "num_cores", lambda: 4)
    tried = []

    def measure(task, data, arguments):
        tried.append(torch.get_num_threads())
        return 1.0 + (torch.get_num_threads() - 1) ** 2

    monkeypatch.setattr(autotune_trials, "measure_batch", measure)
    torch.set_num_threads(2)
    train.train("pretrain", ["-c", recipe, "--speed", "auto", "--out", str(tmp_path / "run")], quietly=True)
    assert {2, 4, 1} <= set(tried)
    assert torch.get_num_threads() == read_config(tmp_path / "run")["threads"] == 1

    tried.clear()
    given = ["--speed", "auto", "--threads", "3"]
    train.train("pretrain", ["-c", recipe, *given, "--out", str(tmp_path / "other")], quietly=True)
    assert set(tried) == {3}
    assert torch.get_num_threads() == 3


@pytest.mark.usefixtures("_threads")
@pytest.mark.slow
def test_threads_are_at_most_the_cores(recipe, tmp_path):
    train.train("pretrain", ["-c", recipe, "--threads", "99", "--out", str(tmp_path / "run")], quietly=True)
    assert torch.get_num_threads() == 4
    assert os.environ["OMP_NUM_THREADS"] == "4"
    with pytest.raises(ValueError, match="threads is 0, expected 1 or more"):
        train.train("pretrain", ["-c", recipe, "--threads", "0", "--out", str(tmp_path / "other")])
    assert not (tmp_path / "other").exists()


@pytest.mark.slow
def test_a_run_that_is_all_warmup_is_said(tmp_path, capsys):
    arguments = arguments_for("SimCLR", tmp_path, max_epochs=1)
    for warmup, said in ((6, True), (5, False)):
        option = [f"--model.schedule.warmup_steps={warmup}", "--out", str(tmp_path / str(warmup))]
        train.train("pretrain", [*arguments, *option], quietly=True)
        text = (
            f"the learning rate only rises: its warm-up of {warmup} steps is no shorter than the run of 6; give model"
        )
        assert (text in capsys.readouterr().out) == said
