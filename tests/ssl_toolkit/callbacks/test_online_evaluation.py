"""Online evaluation: when it runs, what it logs, that it equals an evaluation by hand, and that it changes nothing."""

import csv
import math

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.loggers import CSVLogger

from pretext.simclr import SimCLR
from ssl_toolkit.augment import CenterView, RandomView
from ssl_toolkit.callbacks import WeightAverage
from ssl_toolkit.callbacks.online_evaluation import OnlineEvaluation
from ssl_toolkit.data import ImageData
from ssl_toolkit.evaluation import extract_features, knn_accuracy, linear_probe, rank_me, spread
from ssl_toolkit.modules.backbone import Backbone
from ssl_toolkit.optim import SGD
from ssl_toolkit.schedule import Constant
from ssl_toolkit.task import StepOutput, Task

pytestmark = pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning")


class Brightness(Task):
    """Predicts the mean of an image."""

    def __init__(self, lr=0.1):
        torch.manual_seed(0)
        backbone = Backbone("resnet10t", kwargs={"channels": (8, 8, 8, 8)})
        super().__init__(backbone=backbone, optimizer=SGD(lr=lr), schedule=Constant())
        self.head = torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.Linear(self.backbone.num_features, 1))

    def step(self, batch, keys, context):
        images = batch.images.pixels / 255
        features = self.backbone(images)
        return StepOutput((self.head(features)[:, 0] - images.mean(dim=(1, 2, 3))).square().mean(), features, {})


class Unlabelled(ImageData):
    """The same images without their labels."""

    def labels(self, split):
        return torch.full_like(super().labels(split), -1)


def image_data(data_class=ImageData, **arguments):
    defaults = {"max_images": 60, "image_size": 32, "batch_size": 8, "cache": "memory", "val_fraction": 0.3}
    return data_class(source="procedural", num_threads=1, **{**defaults, **arguments})


def fit(folder, *callbacks, data=None, lr=0.1, **arguments):
    task = Brightness(lr)
    data = data or image_data()
    trainer = Trainer(
        accelerator="cpu", enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        logger=CSVLogger(folder, name="", version=""), callbacks=list(callbacks), log_every_n_steps=1,
        num_sanity_val_steps=0, **{"max_epochs": 2, **arguments},
    )  # fmt: skip
    trainer.fit(task, datamodule=data)
    return task, data, trainer


def logged(folder, key):
    """The values of a column of the CSV by epoch."""
    with (folder / "metrics.csv").open(newline="") as file:
        return {int(row["epoch"]): float(row[key]) for row in csv.DictReader(file) if row.get(key)}


def test_it_takes_a_fiftieth_of_the_training_unless_it_is_told_when():
    # of 900 images 810 train in two views of half the side; an evaluation looks at 500 + 90 of them
    data = image_data(max_images=900, val_fraction=0.1, batch_size=64)
    data.setup("fit")
    torch.manual_seed(0)
    backbone = Backbone("resnet10t", kwargs={"channels": (8, 8, 8, 8)})
    task = SimCLR(backbone=backbone, view=RandomView(16), optimizer=SGD(lr=0.1), schedule=Constant())
    small, whole = OnlineEvaluation(max_train=500), OnlineEvaluation(max_train=500, image_size=32)
    assert small.interval(task, data) == math.ceil(590 / (0.02 * 3 * 2 * 810))
    assert whole.interval(task, data) == math.ceil(590 / (0.02 * 3 * 2 * 810 / 4))
    assert OnlineEvaluation(every_n_epochs=3).interval(task, data) == 3
    assert OnlineEvaluation(max_train=1, max_val=1).interval(task, data) == 1
    assert OnlineEvaluation(every_n_epochs=0).interval(task, data) == 0


@pytest.mark.slow
def test_the_training_is_the_same_bit_for_bit(tmp_path):
    evaluation = OnlineEvaluation(every_n_epochs=1, linear_probe=True, max_train=20)
    plain, _, _ = fit(tmp_path / "plain")
    watched, _, _ = fit(tmp_path / "watched", evaluation)
    assert set(logged(tmp_path / "watched", "val/knn_top1")) == {0, 1}
    one, other = plain.state_dict(), watched.state_dict()
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert logged(tmp_path / "plain", "train/loss") == logged(tmp_path / "watched", "train/loss")


def test_it_logs_what_an_evaluation_by_hand_gives(tmp_path):
    task, data, trainer = fit(tmp_path, OnlineEvaluation(linear_probe=True, k=7, image_size=24), max_epochs=1)
    splits = [extract_features(task.backbone, data.loader(split), CenterView(24)) for split in ("train", "val")]
    (train, train_labels), (val, val_labels) = ((split.features["pooled"], split.labels) for split in splits)
    expected = {
        "val/spread": spread(val),
        "val/rank_me": rank_me(val),
        "val/knn_top1": knn_accuracy(train, train_labels, val, val_labels, [7])[7],
    }
    for key, value in expected.items():
        assert float(trainer.callback_metrics[key]) == pytest.approx(value, rel=1e-5)
        assert logged(tmp_path, key)[0] == pytest.approx(value, rel=1e-5)
    chosen = torch.arange(len(train)) % 5 == 0
    probe = linear_probe(
        (train[~chosen], train_labels[~chosen]), (train[chosen], train_labels[chosen]), (val, val_labels)
    )
    assert logged(tmp_path, "val/linear_probe_top1")[0] == pytest.approx(probe.top1)
    assert logged(tmp_path, "val/evaluation_seconds")[0] > 0
    assert "val/knn_top1" in trainer.progress_bar_metrics


def test_it_measures_the_averaged_weights(tmp_path):
    """The run ends with the average in the task; the weights that it trained are those of a run without an average."""
    measured = {}
    for name, callbacks in {"trained": [], "averaged": [WeightAverage("ema", decay=0.9)]}.items():
        task, data, trainer = fit(tmp_path / name, *callbacks, OnlineEvaluation(every_n_epochs=1))
        measured[name] = spread(extract_features(task.backbone, data.loader("val"), CenterView(32)).features["pooled"])
        assert float(trainer.callback_metrics["val/spread"]) == pytest.approx(measured[name], rel=1e-5)
    assert measured["averaged"] != pytest.approx(measured["trained"], rel=1e-3)


@pytest.mark.parametrize(
    ("every", "length", "epochs"),
    [
        (2, {"max_epochs": 5}, {1, 3, 4}),
        (3, {"max_epochs": 3}, {2}),
        (5, {"max_epochs": -1, "max_steps": 7}, {1}),
        (0, {"max_epochs": 2}, set()),
    ],
)
def test_after_every_nth_epoch_and_the_last(tmp_path, every, length, epochs):
    fit(tmp_path, OnlineEvaluation(every_n_epochs=every, max_train=10, max_val=5), **length)
    assert set(logged(tmp_path, "val/knn_top1")) == epochs


def test_images_without_labels_still_have_spread_and_rank(tmp_path):
    fit(tmp_path, OnlineEvaluation(linear_probe=True), data=image_data(Unlabelled), max_epochs=1)
    assert 0 < logged(tmp_path, "val/spread")[0] < 1
    assert logged(tmp_path, "val/rank_me")[0] >= 1
    assert logged(tmp_path, "val/knn_top1") == logged(tmp_path, "val/linear_probe_top1") == {}


def test_without_validation_images_there_is_nothing_to_log(tmp_path):
    fit(tmp_path, OnlineEvaluation(), data=image_data(val_fraction=0.0), max_epochs=1, limit_val_batches=0)
    assert logged(tmp_path, "val/spread") == {}


def test_the_chosen_images_are_few_seeded_and_spread_over_the_split(tmp_path, monkeypatch):
    seen = []
    original = ImageData.loader

    def loader(self, split, *, indices=None, **arguments):
        if indices is not None:
            seen.append((split, indices.tolist()))
        return original(self, split, indices=indices, **arguments)

    monkeypatch.setattr(ImageData, "loader", loader)
    _, data, _ = fit(tmp_path, OnlineEvaluation(every_n_epochs=1, max_train=12, max_val=4, seed=1))
    (_, val), (_, train), *again = seen
    assert again == [("val", val), ("train", train)], "the same images in every epoch"
    assert len(val) == 4
    assert len(train) == 12
    assert set(train) <= set(data.indices("train").tolist())
    assert train == sorted(set(train))
    assert max(train) > 30


def test_a_diverged_network_gives_nan_and_no_error(tmp_path):
    fit(tmp_path, OnlineEvaluation(linear_probe=True), lr=1e30, max_epochs=1)
    for key in ("val/spread", "val/rank_me", "val/knn_top1", "val/linear_probe_top1"):
        assert math.isnan(logged(tmp_path, key)[0])


@pytest.mark.parametrize("spoiled", ["bank", "val"])
def test_one_feature_that_is_not_finite_gives_nan_and_no_figure(spoiled):
    labels = torch.arange(10) % 2
    features = {"bank": torch.randn(10, 4), "val": torch.randn(10, 4)}
    evaluation = OnlineEvaluation(linear_probe=True)
    figures = evaluation._accuracies(features["bank"], labels, features["val"], labels)
    assert all(0 <= figure <= 1 for figure in figures.values())
    features[spoiled][3, 1] = math.inf
    figures = evaluation._accuracies(features["bank"], labels, features["val"], labels)
    assert set(figures) == {"knn_top1", "linear_probe_top1"}
    assert all(math.isnan(figure) for figure in figures.values())


def test_errors_name_the_argument(tmp_path):
    with pytest.raises(ValueError, match="every_n_epochs is -1, expected at least 0"):
        OnlineEvaluation(every_n_epochs=-1)
    with pytest.raises(ValueError, match="max_val is 0, expected at least 1"):
        OnlineEvaluation(max_val=0)
    data = image_data()
    data.setup()
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[OnlineEvaluation()], max_epochs=1,
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"needs the images as ImageData, got NoneType: call trainer\.fit"):
        trainer.fit(Brightness(), data.loader("train", drop_last=True))


@pytest.mark.slow
def test_two_processes_log_what_one_does(tmp_path):
    # steps too small to change a weight: what is left is the evaluation of the same backbone by one or by two
    one, two = (
        fit(tmp_path / str(devices), OnlineEvaluation(), lr=1e-30, max_epochs=1, devices=devices,
            data=image_data(batch_size=8 // devices), strategy=strategy)[2]
        for devices, strategy in ((1, "auto"), (2, "ddp_spawn"))
    )  # fmt: skip
    for key in ("val/spread", "val/rank_me", "val/knn_top1"):
        assert float(two.callback_metrics[key]) == pytest.approx(float(one.callback_metrics[key]), rel=0.02)


def interval_of(max_images):
    """The interval of an evaluation that takes some time beside the training."""
    data = image_data(max_images=max_images, val_fraction=0.1, batch_size=8)
    data.setup("fit")
    torch.manual_seed(0)
    backbone = Backbone("resnet10t", kwargs={"channels": (8, 8, 8, 8)})
    task = SimCLR(backbone=backbone, view=RandomView(16), optimizer=SGD(lr=0.1), schedule=Constant())
    return OnlineEvaluation(image_size=32).interval(task, data)


@pytest.mark.parametrize("max_images", [90, 91, 92])
def test_all_processes_evaluate_in_the_same_epochs(max_images, run_processes):
    """81, 82 and 83 training images: a process may get two images where another gets one."""
    alone = interval_of(max_images)
    assert alone > 10
    assert run_processes(interval_of, 2, max_images) == [alone, alone]
