"""Each pretext task learns: it beats chance at its own game, and its features beat random weights.

A new task is found here without its entry below, and fails until it has one that learns within 20 seconds of a core.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Trainer

import methods
from ssl_toolkit.augment import CenterView, RandomView
from ssl_toolkit.data import ImageData
from ssl_toolkit.evaluation import extract_features, knn_accuracy
from ssl_toolkit.modules import Backbone
from ssl_toolkit.optim import AdamW
from ssl_toolkit.schedule import Cosine, Scheduled

# strong colours, because colour alone tells these drawings apart
COLOURS = {"brightness": 0.8, "contrast": 0.8, "saturation": 0.8, "hue": 0.5, "grayscale": 0.5, "blur": 0}
PATCHES = RandomView(size=54, scale=(0.8, 1.0), ratio=(1, 1), hflip=0, preset="crop_and_flip")


class Lesson(NamedTuple):
    """What a task needs to learn something soon.

    Attributes:
        arguments: Of the task.
        beats_chance: Says whether the task is good at its own game, from its last metrics and from itself.
        better: By how much kNN's top-1 is at least above that of the random weights.
        num: Of training images.
        steps: With AdamW.
        batch_size: Of a step.
        lr: The largest rate.
        weight_decay: Of AdamW.
        stem_width: Of the network.
    """

    arguments: dict[str, Any]
    beats_chance: Callable[[dict[str, float], Any, ImageData], bool]
    better: float
    num: int = 1800
    steps: int = 200
    batch_size: int = 128
    lr: float = 2e-3
    weight_decay: float = 0.05
    stem_width: int = 8


def tells_images_apart(metrics: dict[str, float], task: Any, data: ImageData) -> bool:
    """A prediction from one view is nearer to the teacher's embedding of its own image than to those of others."""
    batch = next(iter(data.loader("val", batch_size=100)))
    with torch.no_grad():
        views = task.eval().make_views(batch.images, task.keys(batch))
        predicted = task.predictor(task.embed(views)[1][0])
        similarity = F.normalize(predicted, dim=1) @ F.normalize(task.teach(views)[1], dim=1).T
    # by chance, and after a collapse, it is as near to any
    return float(similarity.diagonal().mean() - similarity.mean()) > 0.1


LESSONS = {
    "SimCLR": Lesson(
        {"view": RandomView(size=40, scale=(0.6, 1.0), **COLOURS), "temperature": 0.2},
        # the right one of 255 others: chance is 0.4 percent
        lambda metrics, task, data: metrics["train/pair_top1"] > 0.03,
        better=0.08,
    ),
    "BarlowTwins": Lesson(
        {"view": RandomView(size=40, scale=(0.6, 1.0), **COLOURS), "projector_widths": (256, 256)},
        # by chance: no agreement, and a loss of 265
        lambda metrics, task, data: (
            metrics["train/agreement"] > 0.4 and metrics["train/loss"] < 0.6 * task.initial_loss(64)
        ),
        better=0.05, batch_size=64, lr=4e-3,
    ),
    "BYOL": Lesson(
        {"view": RandomView(size=32, scale=(0.6, 1.0), **COLOURS), "projector_widths": (256, 128),
         "predictor_width": 256, "momentum": Scheduled(0.99, 1.0)},
        tells_images_apart,
        better=0.04, steps=290, batch_size=64, lr=1e-2, weight_decay=0.0,
    ),
    "MoCoV2": Lesson(
        {"view": RandomView(size=32, scale=(0.6, 1.0), **COLOURS), "projector_widths": (128, 64), "queue_size": 256,
         "momentum": 0.9, "symmetric": True},
        # one of 257: chance is 0.4 percent, and the loss of chance 5.55
        lambda metrics, task, data: metrics["train/key_top1"] > 0.01 and metrics["train/loss"] < 5.2,
        better=0.06, steps=230, batch_size=64, lr=6e-3,
    ),
    "PatchPosition": Lesson(
        {"view": PATCHES, "patch_size": 17, "jitter": 0, "colour": "none", "hidden_width": 128},
        # chance is one in eight
        lambda metrics, task, data: metrics["train/position_top1"] > 0.2,
        better=0.05, num=900, steps=150, batch_size=50, stem_width=32,
    ),
    "Jigsaw": Lesson(
        {"view": PATCHES, "patch_size": 17, "jitter": 0, "colour": "none", "hidden_width": 128, "patch_width": 32,
         "num_permutations": 8},
        # chance is one in eight
        lambda metrics, task, data: metrics["train/permutation_top1"] > 0.5,
        better=0.08, num=900, steps=150, batch_size=50, stem_width=32,
    ),
}  # fmt: skip


def make_backbone(stem_width: int) -> Backbone:
    torch.manual_seed(0)
    return Backbone("resnet10t", kwargs={"stem_width": stem_width, "channels": (16, 32, 64, 128)})


def knn_top1(backbone: Backbone, data: ImageData) -> float:
    train, val = (extract_features(backbone, data.loader(split), CenterView(48)) for split in ("train", "val"))
    features = train.features["pooled"], train.labels, val.features["pooled"], val.labels
    return knn_accuracy(*features, k=(5,))[5]


def test_each_task_has_its_lesson():
    assert set(LESSONS) == set(methods.pretext_tasks())


@pytest.mark.parametrize("name", methods.pretext_tasks())
def test_each_task_learns(name, reached):
    lesson = LESSONS[name]
    schedule = Cosine(warmup_percent=10)
    optimizer = AdamW(lr=lesson.lr, weight_decay=lesson.weight_decay)
    task = methods.tasks()[name](
        backbone=make_backbone(lesson.stem_width), optimizer=optimizer, schedule=schedule, **lesson.arguments
    )
    data = ImageData(
        source="procedural", max_images=lesson.num + 500, val_fraction=500 / (lesson.num + 500), image_size=48,
        batch_size=lesson.batch_size, cache="memory",
    )  # fmt: skip
    trainer = Trainer(
        accelerator="cpu", max_steps=lesson.steps, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(task, datamodule=data)
    data.setup("fit")
    task.to(memory_format=torch.contiguous_format)
    metrics = {key: float(value) for key, value in trainer.callback_metrics.items()}
    assert lesson.beats_chance(metrics, task, data), metrics
    learned, random = knn_top1(task.backbone, data), knn_top1(make_backbone(lesson.stem_width), data)
    assert learned > random + lesson.better
    reached(f"{name}: kNN {100 * learned:.1f} % after {lesson.steps} steps, {100 * random:.1f} % with random weights")
