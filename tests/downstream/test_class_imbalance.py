"""Remedies for classes of very different sizes: what they make of the loss of training, and of no other."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from downstream.classification import Classification
from ssl_toolkit.batch import Batch, Images
from ssl_toolkit.modules.backbone import Backbone
from ssl_toolkit.optim import AdamW
from ssl_toolkit.schedule import Cosine
from ssl_toolkit.step import StepContext

COUNTS = [60, 30, 10]
LABELS = torch.repeat_interleave(torch.arange(3), torch.tensor(COUNTS))


class SkewedData:
    """What a classifier asks of its data."""

    num_classes, class_names, target_names = 3, ("a", "b", "c"), ()

    def labels(self, split):
        return LABELS


def make_task(**arguments):
    torch.manual_seed(0)
    backbone = Backbone("resnet10t", kwargs={"channels": (8, 8, 8, 8)})
    task = Classification(
        backbone=backbone, optimizer=AdamW(lr=1e-2), schedule=Cosine(), num_classes=3, image_size=32, **arguments
    )
    task.build_head(backbone.num_features)
    return task


def with_counts(monkeypatch, **arguments):
    task = make_task(**arguments)
    monkeypatch.setattr(type(task), "data", property(lambda self: SkewedData()))
    task._count_training_samples()
    return task


def some_features(task, num=12):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(num, task.backbone.num_features, generator=generator), torch.arange(num) % 3


def losses(task):
    features, targets = some_features(task)
    with torch.no_grad():
        found = [task.loss(features, targets, StepContext(training)).loss for training in (True, False)]
        return [float(each) for each in found], task.logits(features), targets


def test_a_plain_run_has_one_loss():
    (trained, tested), logits, targets = losses(make_task())
    assert trained == tested == pytest.approx(float(F.cross_entropy(logits, targets)))


def test_weights_are_inverse_to_the_sizes_of_the_training_classes(monkeypatch):
    (trained, tested), logits, targets = losses(with_counts(monkeypatch, class_weights=1.0))
    weights = torch.tensor([100 / (3 * count) for count in COUNTS])
    each = F.cross_entropy(logits, targets, reduction="none") * weights[targets]
    assert trained == pytest.approx(float(each.mean()), rel=1e-5)
    assert tested == pytest.approx(float(F.cross_entropy(logits, targets)))


@pytest.mark.parametrize("factor", [0.5, 1.0])
def test_adjustment_adds_the_logarithm_of_each_frequency(monkeypatch, factor):
    (trained, tested), logits, targets = losses(with_counts(monkeypatch, logit_adjustment=factor))
    added = logits + factor * torch.tensor([math.log(count / 100) for count in COUNTS])
    assert trained == pytest.approx(float(F.cross_entropy(added, targets)), rel=1e-5)
    assert tested == pytest.approx(float(F.cross_entropy(logits, targets)))


def test_a_focus_alone_needs_no_counts():
    (trained, tested), logits, targets = losses(make_task(focal_gamma=2.0))
    own = logits.softmax(dim=1).gather(1, targets[:, None]).squeeze(1)
    assert trained == pytest.approx(float(((1 - own) ** 2 * -own.log()).mean()), rel=1e-5)
    assert trained < tested


def test_a_checkpoint_holds_none_of_it(monkeypatch):
    plain = make_task().state_dict().keys()
    assert with_counts(monkeypatch, class_weights=1.0, logit_adjustment=1.0).state_dict().keys() == plain


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"class_weights": 1.5}, "class_weights is 1.5, expected 0"),
        ({"class_weights": -0.1}, "class_weights is -0.1"),
        ({"focal_gamma": -1.0}, "focal_gamma is -1.0"),
        ({"logit_adjustment": math.nan}, "logit_adjustment is nan"),
    ],
)
def test_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_task(**arguments)


def test_what_the_draw_of_images_evens_out_is_not_counted_again(monkeypatch):
    class BalancedData(SkewedData):
        class_balance = 0.5

    task = make_task(class_weights=1.0)
    monkeypatch.setattr(type(task), "data", property(lambda self: BalancedData()))
    with pytest.raises(ValueError, match=r"count again what data\.class_balance evens out"):
        task.setup("fit")


def test_an_image_that_comes_again_is_augmented_in_another_way():
    task = make_task()
    images = Images(torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.full((4, 2), 8))
    indices, labels = torch.tensor([7, 7, 7, 9]), torch.zeros(4, dtype=torch.int64)
    keys = task.keys(Batch(images, indices, labels, 2, None, torch.tensor([0, 1, 2, 0])))
    plain = task.keys(Batch(images, indices, labels, 2))
    assert len(set(keys.tolist())) == 4
    assert keys[[0, 3]].tolist() == plain[[0, 3]].tolist()
