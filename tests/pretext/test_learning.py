"""Each pretext task learns: it beats chance at its own game, and its features beat random weights."""

import torch
from lightning.pytorch import Trainer

from pretext.barlow_twins import BarlowTwins
from pretext.patch_position import PatchPosition
from pretext.simclr import SimCLR
from ssl_toolkit.augment import CenterView, RandomView
from ssl_toolkit.data import ImageData
from ssl_toolkit.evaluation import extract_features, knn_accuracy
from ssl_toolkit.modules.backbone import Backbone
from ssl_toolkit.optim import AdamW
from ssl_toolkit.schedule import Cosine


def make_backbone(stem_width):
    torch.manual_seed(0)
    return Backbone("resnet10t", kwargs={"stem_width": stem_width, "channels": (16, 32, 64, 128)})


def pretrain(task, max_images, max_steps, batch_size):
    data = ImageData(source="procedural", max_images=max_images, image_size=48, batch_size=batch_size, cache="memory")
    trainer = Trainer(
        accelerator="cpu", max_steps=max_steps, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(task, datamodule=data)
    data.setup("fit")
    task.backbone.to(memory_format=torch.contiguous_format)
    return data, {name: float(metric) for name, metric in trainer.callback_metrics.items()}


def knn_top1(backbone, data):
    train, val = (extract_features(backbone, data.loader(split), CenterView(48)) for split in ("train", "val"))
    features = train.features["pooled"], train.labels, val.features["pooled"], val.labels
    return knn_accuracy(*features, k=(5,))[5]


def test_simclr_learns():
    backbone, random = make_backbone(stem_width=8), make_backbone(stem_width=8)
    colours = {"brightness": 0.8, "contrast": 0.8, "saturation": 0.8, "hue": 0.5, "grayscale": 0.5}
    view = RandomView(size=40, scale=(0.6, 1.0), blur=0, **colours)
    schedule = Cosine(warmup_percent=10)
    task = SimCLR(backbone=backbone, view=view, optimizer=AdamW(lr=2e-3), schedule=schedule, temperature=0.2)
    data, metrics = pretrain(task, max_images=2000, max_steps=200, batch_size=128)
    # the right one of 255 others: chance is 0.4 percent
    assert metrics["train/pair_top1"] > 0.03
    assert knn_top1(backbone, data) > knn_top1(random, data) + 0.08


def test_barlow_twins_learns():
    backbone, random = make_backbone(stem_width=8), make_backbone(stem_width=8)
    colours = {"brightness": 0.8, "contrast": 0.8, "saturation": 0.8, "hue": 0.5, "grayscale": 0.5}
    view = RandomView(size=40, scale=(0.6, 1.0), blur=0, **colours)
    schedule = Cosine(warmup_percent=10)
    task = BarlowTwins(
        backbone=backbone, view=view, optimizer=AdamW(lr=4e-3), schedule=schedule, projector_widths=(256, 256)
    )
    data, metrics = pretrain(task, max_images=2000, max_steps=200, batch_size=64)
    # by chance: no agreement, and a loss of 265
    assert metrics["train/agreement"] > 0.4
    assert metrics["train/loss"] < 0.6 * task.initial_loss(64)
    assert knn_top1(backbone, data) > knn_top1(random, data) + 0.05


def test_patch_position_learns():
    backbone, random = make_backbone(stem_width=32), make_backbone(stem_width=32)
    view = RandomView(size=54, scale=(0.8, 1.0), ratio=(1, 1), hflip=0, jitter_prob=0, blur=0)
    arguments = {"patch_size": 17, "jitter": 0, "colour": "none", "hidden_width": 128}
    task = PatchPosition(
        backbone=backbone, view=view, optimizer=AdamW(lr=2e-3), schedule=Cosine(warmup_percent=10), **arguments
    )
    data, metrics = pretrain(task, max_images=1000, max_steps=150, batch_size=50)
    # chance is one in eight
    assert metrics["train/position_top1"] > 0.2
    assert knn_top1(backbone, data) > knn_top1(random, data) + 0.05
