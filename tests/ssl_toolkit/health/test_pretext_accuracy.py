"""A pretext accuracy far above what photographs allow is said, and nothing else is."""

import json
import math
from types import SimpleNamespace

import pytest

from pretext.patch_position import PatchPosition
from pretext.simclr import SimCLR
from ssl_toolkit.data import ImageData
from ssl_toolkit.health.monitor import HealthMonitor
from ssl_toolkit.health.pretext_accuracy import judge_pretext_accuracy
from ssl_toolkit.report import write_report

KNOWN = PatchPosition.photograph_accuracy
GAP = math.nan


@pytest.mark.parametrize(
    ("val", "train", "said"),
    [
        ([0.3, GAP, 0.71], [0.2] * 40, "validation images is 71.0 %"),
        ([0.9, 0.69], [0.99] * 40, None),  # half of the way from 40 % is 70 %; what counts is the end
        ([0.52], [0.6] * 40, None),  # photographs of single objects, without a shortcut
        ([], [0.3] * 30 + [0.95] * 10, "training images is 95.0 %"),
        ([GAP], [0.95] * 19, None),  # too few figures
        ([], [0.95] * 30 + [0.6] * 10, None),
        ([], [], None),
    ],
)
def test_figures_by_hand(val, train, said):
    metrics = {"val/position_top1": val, "train/position_top1": train}
    found = judge_pretext_accuracy(KNOWN, metrics, "RUN/backbone.safetensors")
    assert (found is not None) == (said is not None)
    if found is not None:
        assert said in found.what
        assert "the 40 % that" in found.what
        assert "Doersch et al. 2015" in found.what
        assert "--weights RUN/backbone.safetensors --data.path LABELLED --shortcuts true" in found.advice
        assert "model.colour" in found.advice


@pytest.mark.parametrize(
    ("task", "source", "said"),
    [(PatchPosition, "folder", True), (PatchPosition, "procedural", False), (SimCLR, "folder", False)],
)
def test_a_run_says_it_of_photographs_alone_and_so_does_its_page(task, source, said, tmp_path, capsys):
    (tmp_path / "images").mkdir()
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    (tmp_path / "metrics.csv").write_text("step,train/position_top1,val/position_top1\n9,0.8,\n9,,0.9\n")
    trainer = SimpleNamespace(
        is_global_zero=True,
        loggers=[],
        default_root_dir=str(tmp_path),
        global_step=10,
        datamodule=ImageData(path=str(tmp_path / "images"), source=source),
    )
    HealthMonitor().on_train_end(trainer, SimpleNamespace(photograph_accuracy=task.photograph_accuracy))
    what = "The accuracy of the pretext task on validation images is 90.0 %, far above"
    assert (f"watch: {what}" in capsys.readouterr().out) == said
    assert (tmp_path / "watch.json").exists() == said
    if said:
        assert [each["kind"] for each in json.loads((tmp_path / "watch.json").read_text())] == ["shortcut"]
    assert (what in write_report(tmp_path).read_text()) == said
