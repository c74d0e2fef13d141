"""The same head on random weights, after a transfer with a frozen backbone."""

import math
import os

import pytest
import torch

from ssl_toolkit.augment import CenterView
from ssl_toolkit.cli import main
from ssl_toolkit.data import ImageData
from ssl_toolkit.distributed.ranks import rank, world_size
from ssl_toolkit.evaluation.intervals import newcombe_difference, wilson_interval
from ssl_toolkit.evaluation.random_weights import calibrate_batch_norm, random_backbone
from ssl_toolkit.modules import Backbone
from ssl_toolkit.tracking.metrics_csv import last_values
from ssl_toolkit.weights import save_backbone

KWARGS = {"stem_width": 8, "channels": [8, 8, 16, 16]}
DATA = {"source": "procedural", "max_images": 300, "image_size": 32, "batch_size": 50, "test_fraction": 0.4}


@pytest.fixture
def weights(tmp_path):
    backbone = Backbone("resnet10t", kwargs=KWARGS)
    for parameter in backbone.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    save_backbone(tmp_path / "weights.safetensors", backbone)
    return tmp_path / "weights.safetensors"


def transfer(weights, run, *more):
    options = [f"--data.{name}={value}" for name, value in DATA.items()]
    options += ["--data.labels", "folder", "--trainer.max_epochs", "2", "--trainer.accelerator", "cpu"]
    options += ["--trainer.precision", "32-true", "--tracker", "none", "--model.image_size", "32"]
    recipe = ["-c", "configs/transfer/linear_probe.yaml"]
    return main(["transfer", *recipe, "--model.weights", str(weights), "--out", str(run), *options, *more])


@pytest.mark.slow
def test_it_is_what_a_transfer_from_these_random_weights_gives(weights, tmp_path, capsys):
    assert transfer(weights, tmp_path / "run") == 0
    said = capsys.readouterr().out
    found = last_values(tmp_path / "run")
    assert f"the same head on random weights: {100 * found['test/random_weights_top1']:.1f} %, difference " in said

    data = ImageData(**DATA, labels="folder", val_fraction=0.1)
    data.setup("fit")
    random = random_backbone(Backbone("resnet10t", kwargs=KWARGS), 0)
    calibrate_batch_norm(random, data.loader("train", shuffle=True), CenterView(32))
    save_backbone(tmp_path / "random.safetensors", random)
    assert transfer(tmp_path / "random.safetensors", tmp_path / "by_hand", "--random_weights", "false") == 0
    by_hand = last_values(tmp_path / "by_hand")
    assert found["test/random_weights_top1"] == pytest.approx(by_hand["test/top1"], abs=1e-6)
    assert found["test/random_weights_mean_class_top1"] == pytest.approx(by_hand["test/mean_class_top1"], abs=1e-6)
    assert found["test/top1"] != by_hand["test/top1"]
    assert "test/random_weights_top1" not in by_hand
    assert "random weights" not in capsys.readouterr().out
    page = (tmp_path / "run" / "report.html").read_text()
    assert "top-1 of the same head on random weights" in page
    assert f"ssl-toolkit predict {tmp_path / 'run'} --data.path IMAGES" in page
    assert '<td>steps</td><td class="number">6</td>' in page


def in_processes(weights, folder):
    os.environ["LOCAL_RANK"] = str(rank())  # so that Lightning starts no process itself
    number = world_size()
    more = ["--data.batch_size", str(48 // number), "--trainer.devices", str(number), "--random_weights", "true"]
    assert transfer(weights, folder / str(number), *more) == 0
    return last_values(folder / str(number))


@pytest.mark.slow
def test_it_does_not_depend_on_the_number_of_processes(weights, run_processes, tmp_path, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "0")
    one = in_processes(weights, tmp_path)
    for number in (2, 3):  # which do not divide the images
        several = run_processes(in_processes, number, weights, tmp_path)[0]
        for name in ("test/random_weights_top1", "test/random_weights_mean_class_top1", "test/top1"):
            assert several[name] == pytest.approx(one[name], abs=1e-6), (number, name)
    assert one["test/random_weights_top1"] > 0


@pytest.mark.slow
def test_where_nothing_was_left_to_train_the_row_stays_and_nothing_is_said(weights, tmp_path, capsys):
    run = tmp_path / "run"
    assert transfer(weights, run) == 0
    found = last_values(run)["test/random_weights_top1"]
    capsys.readouterr()
    assert main(["transfer", "--resume", str(run)]) == 0
    assert "is not measured" not in capsys.readouterr().out
    assert last_values(run)["test/random_weights_top1"] == found

    lines = (run / "metrics.csv").read_text().splitlines()
    # as if the run had been killed before it was measured
    (run / "metrics.csv").write_text("\n".join(line for line in lines if not line.endswith(str(found))) + "\n")
    assert len((run / "metrics.csv").read_text().splitlines()) < len(lines)
    assert main(["transfer", "--resume", str(run)]) == 0
    assert "is not measured, since nothing was left to train: --random_weights true does" in capsys.readouterr().out


def test_it_is_refused_where_the_backbone_is_trained(weights, tmp_path, capsys):
    assert transfer(weights, tmp_path / "run", "--model.freeze_backbone", "false", "--random_weights", "true") == 2
    assert "--random_weights compares frozen backbones with their random weights" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_difference_of_two_accuracies_has_newcombes_interval():
    # Newcombe 1998, table II, example (a): 56 of 70 and 48 of 80, method 10
    found = newcombe_difference(wilson_interval(56, 70), wilson_interval(48, 80))
    assert [round(each, 4) for each in found] == [0.2, 0.0524, 0.3339]
    assert math.isclose(newcombe_difference(wilson_interval(48, 80), wilson_interval(56, 70)).low, -found.high)
