"""Accuracies on skewed data stand beside that of the largest class, and the verdict knows it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import recall_score

from ssl_toolkit.cli import main
from ssl_toolkit.cli.remarks import accuracy_lines
from ssl_toolkit.data import ImageData
from ssl_toolkit.evaluation import evaluate
from ssl_toolkit.evaluation.intervals import confidence_interval, wilson_interval
from ssl_toolkit.evaluation.labelled_rows import mean_class
from ssl_toolkit.modules import Backbone
from ssl_toolkit.tracking.metrics_csv import last_values

COUNTS = {"common": 70, "rare": 20, "rarest": 10}


@pytest.fixture(scope="module")
def skewed(tmp_path_factory):
    """Noise, from which no class can be told."""
    folder, generator = tmp_path_factory.mktemp("skewed"), np.random.default_rng(0)
    for name, count in COUNTS.items():
        (folder / name).mkdir()
        for number in range(count):
            pixels = generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def evaluation(skewed):
    torch.manual_seed(0)
    data = ImageData(str(skewed), labels="folder", image_size=16, test_fraction=0.4, val_fraction=0.2, cache="memory")
    return evaluate(Backbone("resnet10t", kwargs={"stem_width": 8, "channels": [8, 8, 16, 16]}), data, stages=False)


def test_the_largest_class_and_the_verdict(evaluation):
    assert evaluation.majority == pytest.approx(28 / 40)
    assert "always naming the largest class: 70.0 %; mean-class accuracy of pooled: kNN " in evaluation.baselines()
    assert "is not shown to be better than always naming the largest class (70.0 %)" in evaluation.verdict()
    assert evaluation.to_json()["majority"] == evaluation.majority


def test_the_verdict_does_not_mention_it_where_it_is_beaten(evaluation):
    assert "largest class" not in dataclasses.replace(evaluation, majority=0.01).verdict()


def test_every_class_counts_the_same_in_the_mean(evaluation):
    # a classifier of noise at best names classes by their size: a third, within what 4 images of a class allow
    assert evaluation.row().linear_mean_class < 0.6
    assert 0 <= evaluation.row("pooled", "random").knn_mean_class <= 1


def test_a_class_without_test_images_is_not_in_the_mean():
    labels, predicted = torch.tensor([0, 0, 0, 2, 2, 3]), torch.tensor([0, 0, 1, 2, 0, 3])
    expected = sum(recall_score(labels, predicted, labels=[0, 2, 3], average=None)) / 3
    assert mean_class(predicted == labels, labels) == pytest.approx(expected)


def test_an_interval_of_counts_is_that_of_the_images():
    correct = torch.tensor([True] * 7 + [False] * 4)
    assert wilson_interval(7, 11) == confidence_interval(correct)


def test_transfer_ends_with_the_interval_and_the_largest_class(skewed, tmp_path, capsys):
    options = ["--data.path", skewed, "--data.image_size", 16, "--data.batch_size", 10, "--data.test_fraction", 0.4,
               "--trainer.max_epochs", 1, "--out", tmp_path / "run", "--tracker", "none",
               "--model.backbone.name", "resnet10t", "--trainer.accelerator", "cpu",
               "--model.backbone.kwargs", "{stem_width: 8, channels: [8, 8, 16, 16]}"]  # fmt: skip
    assert main(["transfer", "-c", "configs/transfer/linear_probe.yaml", *map(str, options)]) == 0
    said = capsys.readouterr().out
    assert "always naming the largest class: 70.0 %, and the network is not shown to be better\n" in said
    assert "(95 % interval " in said
    assert last_values(tmp_path / "run")["test/largest_class_top1"] == pytest.approx(0.7)


def test_lines_of_a_network_that_is_better():
    metrics = {"test/top1": torch.tensor(0.9), "test/largest_class_top1": torch.tensor(0.5)}
    assert accuracy_lines(metrics, 100) == [
        "test/top1: 90.0 % (95 % interval 82.6 % to 94.5 %, 100 tested)",
        "always naming the largest class: 50.0 %",
    ]
    assert accuracy_lines({}, 100) == accuracy_lines(metrics, 0) == []
