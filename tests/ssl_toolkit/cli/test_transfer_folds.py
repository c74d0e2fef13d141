"""``transfer --folds``: every image is tested once, and what was stopped goes on."""

from __future__ import annotations

import json

import numpy as np
import pytest
import yaml

from ssl_toolkit.cli import folds, main
from ssl_toolkit.cli.folds import check_apart, summary, table
from ssl_toolkit.data.split_file import read_split_file
from ssl_toolkit.run_folder import newest_checkpoint
from ssl_toolkit.tracking.metrics_csv import last_values

RECIPE = {
    "model": {
        "class_path": "downstream.classification.Classification",
        "init_args": {
            "backbone": {"name": "resnet10t", "kwargs": {"channels": [8, 8, 16, 16]}},
            "freeze_backbone": True,
            "optimizer": {"class_path": "ssl_toolkit.optim.AdamW", "init_args": {"lr": 0.01}},
            "schedule": {"class_path": "ssl_toolkit.schedule.Cosine"},
        },
    },
    "data": {
        "source": "procedural", "max_images": 40, "image_size": 32, "batch_size": 10, "cache": "memory",
        "test_fraction": 0.2,
    },
    "trainer": {"max_epochs": 2, "accelerator": "cpu"},
    "checkpoint": {"every_n_steps": 2},
    "tracker": "none",
}  # fmt: skip


@pytest.fixture
def command(tmp_path):
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    return ["transfer", "-c", str(tmp_path / "recipe.yaml"), "--folds", "2", "--out", str(tmp_path / "run")]


def test_every_image_is_tested_once_and_a_fold_that_was_stopped_goes_on(command, tmp_path, capsys):
    run = tmp_path / "run"
    assert main(command) == 0
    said = capsys.readouterr().out
    found = json.loads((run / folds.FILE).read_text())
    own = [last_values(run / f"fold-{fold}") for fold in (1, 2)]
    top1 = [each["test/top1"] for each in own]
    assert found["figures"]["test/top1"] == {"mean": np.mean(top1), "std": np.std(top1, ddof=1), "values": top1}
    assert found["finished"] == [1, 2]
    assert "fold 2 of 2: " in said
    assert "it is not the error of the mean" in said
    tested = [read_split_file(run / f"fold-{fold}")["train"].splits == "test" for fold in (1, 2)]
    assert (tested[0] ^ tested[1]).all()

    # as if the second had been killed after its first epoch
    kept = {file: file.stat().st_mtime_ns for file in (run / "fold-1").rglob("*")}
    newest_checkpoint(run / "fold-2").unlink()
    (run / folds.FILE).write_text(json.dumps({**found, "finished": [1], "figures": {}}))
    assert main(command) == 0
    assert "fold-2, which goes on" in capsys.readouterr().out
    assert json.loads((run / folds.FILE).read_text()) == found
    assert {file: file.stat().st_mtime_ns for file in (run / "fold-1").rglob("*")} == kept

    for changed, message in (
        (["--model.optimizer.lr", "1"], "(model.optimizer.lr is 1.0, before 0.01)"),
        (["--folds", "3"], "(folds is 3, before 2)"),
    ):
        assert main([*command, *changed]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--folds", "1"], "--folds is 1, expected at least 2"),
        (["--folds", "41"], "40 images can be divided into 2 to 40 folds, got 41"),
        (["--data.test_fraction", "0.3"], "leave --data.test_fraction out"),
        (["--data.fold", "1/2"], "give one of the two"),
        (["--budget", "1min"], "--budget would settle each fold in another way"),
        (["--data.splits", "run"], "so that data.splits does not go with it"),
    ],
)
def test_what_does_not_go_with_folds_is_refused_and_leaves_nothing(command, tmp_path, capsys, arguments, message):
    assert main([*command, *arguments]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("ssl-toolkit: error") == 1
    assert not (tmp_path / "run").exists()


def test_several_processes_of_a_launcher_are_refused(command, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(command) == 2
    assert "run it without torchrun or srun and give --trainer.devices" in capsys.readouterr().err


def test_the_summary_leaves_out_what_a_fold_has_not():
    tested = [{"test/a": 1.0, "val/a": 9.0, "test/c": float("nan")}, {"test/a": 4.0, "test/b": 2.0}]
    found = summary(tested)
    assert found == {
        "test/a": {"mean": 2.5, "std": pytest.approx(np.std([1, 4], ddof=1)), "values": [1.0, 4.0]},
        "test/b": {"mean": 2.0, "std": 0.0, "values": [None, 2.0]},
    }
    assert table(found, 2)[2].split() == ["test/b", "2", "0", "-", "2"]


def test_folds_that_overlap_are_refused(command, tmp_path):
    options = ["--trainer.max_epochs", "1", "--folds", "null", "--data.fold", "1/2", "--data.test_fraction", "0"]
    runs = [tmp_path / "a", tmp_path / "b"]
    for run in runs:
        assert main([*command, *options, "--out", str(run)]) == 0
    with pytest.raises(ValueError, match="20 images are tested in more than one fold"):
        check_apart(runs)
    more = [*options, "--data.max_images", "50", "--out", str(tmp_path / "c")]
    assert main([*command, *more]) == 0
    with pytest.raises(ValueError, match="the images have changed since"):
        check_apart([runs[0], tmp_path / "c"])
