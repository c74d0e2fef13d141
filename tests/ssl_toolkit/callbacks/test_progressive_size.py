from __future__ import annotations

import pytest
import torch
from lightning import Trainer

from pretext.patch_position import PatchPosition
from pretext.simclr import SimCLR
from ssl_toolkit.augment import RandomView
from ssl_toolkit.batch import Images
from ssl_toolkit.callbacks import ProgressiveSize
from ssl_toolkit.data import ImageData
from ssl_toolkit.modules.backbone import Backbone
from ssl_toolkit.optim import SGD
from ssl_toolkit.schedule import Cosine
from ssl_toolkit.tuning import time_budget


class Watched(SimCLR):
    """Notes the sides of the views in training and in validation."""

    def loss(self, views, context):
        vars(self).setdefault("sides", {True: [], False: []})[self.training].append(views[0].shape[-1])
        return super().loss(views, context)


def make(kind=Watched, **kwargs):
    torch.manual_seed(0)
    backbone = Backbone("resnet10t", kwargs={"channels": (4, 4, 8, 8), "stem_width": 4})
    return kind(backbone=backbone, optimizer=SGD(lr=0.01), schedule=Cosine(), **kwargs)


def make_data():
    return ImageData(source="procedural", max_images=45, image_size=32, batch_size=8, cache="memory")


def fit(task, callback, **options):
    trainer = Trainer(
        accelerator="cpu", callbacks=[callback], logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, use_distributed_sampler=False, num_sanity_val_steps=0, **options,
    )  # fmt: skip
    trainer.fit(task, datamodule=make_data())


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.filterwarnings("ignore:The number of training batches")
def test_views_grow_with_the_run_and_are_whole_at_its_end_and_in_validation():
    task = make(view=RandomView(size=32))
    fit(task, ProgressiveSize(start=0.5, until=0.8), max_epochs=2)
    # ten steps; by hand: 16 + 16 * progress / 0.8, down to a multiple of 4
    assert task.sides[True] == [16, 16, 20, 20, 24, 24, 28, 28, 32, 32]
    assert task.sides[False] == [32, 32]
    assert task.view.side == task.view.size == 32


@pytest.mark.parametrize("size", [32, 96, 224])
def test_the_side_rises_to_the_size_and_the_area_is_its_mean(size):
    progressive = ProgressiveSize(start=0.5, until=0.6, multiple=8)
    sides = [progressive.side(size, step / 1000) for step in range(1001)]
    assert sides == sorted(sides)
    assert sides[0] == size // 2
    assert all(side % 8 == 0 for side in sides)
    assert set(sides[600:]) == {size}
    assert progressive.mean_area(size) == pytest.approx(sum(side**2 for side in sides) / 1001, rel=1e-3)
    # without rounding: the integral of (a + b t)^2
    smooth = 0.6 * size**2 * (1 - 0.5**3) / (3 * 0.5) + 0.4 * size**2
    assert progressive.mean_area(size) == pytest.approx(smooth, rel=0.15)
    assert ProgressiveSize(start=1).mean_area(size) == size**2


def test_a_smaller_view_shows_the_same():
    photo = torch.rand(1, 3, 6, 6)
    smooth = torch.nn.functional.interpolate(photo, size=(96, 96), mode="bicubic").clamp(0, 1)
    pixels = (smooth.repeat(16, 1, 1, 1) * 255).to(torch.uint8)
    images = Images(pixels, torch.full((16, 2), 96))
    view = RandomView(size=64, blur=1.0, blur_sigma=(0.5, 4.0), erase=0.0, blur_kernel=21)
    whole = view(images, torch.arange(16))
    view.side = 32
    small = view(images, torch.arange(16))
    assert small.shape[-1] == 32
    torch.testing.assert_close(small, torch.nn.functional.avg_pool2d(whole, 2), atol=0.06, rtol=0)


def test_a_budget_counts_the_smaller_views(monkeypatch):
    def trial_trainer(arguments, stopwatch):
        class Trial:
            accumulate_grad_batches, num_training_batches = 1, 5

            def fit(self, task, datamodule):
                stopwatch.training = 1.0 + task.view.side**2

        return Trial()

    monkeypatch.setattr(time_budget, "trial_trainer", trial_trainer)
    task, progressive = make(SimCLR, view=RandomView(size=128)), ProgressiveSize(start=0.25, until=1.0)
    costs = [time_budget.measure(task, None, {"limit_val_batches": 0}, None, each).step for each in (None, progressive)]
    assert costs == [1 + 128**2, pytest.approx(1 + progressive.mean_area(128))]


def test_a_task_whose_views_have_one_size_says_so():
    task = make(PatchPosition, view=RandomView(size=96), patch_size=32, jitter=0)
    with pytest.raises(ValueError, match=r"progressive.start is 0.5, but the views of PatchPosition have one size"):
        fit(task, ProgressiveSize(start=0.5), max_epochs=1)
    fit(task, ProgressiveSize(), max_steps=1)


@pytest.mark.parametrize(
    ("wrong", "said"), [({"start": 0}, "start"), ({"until": 2}, "until"), ({"multiple": 0}, "mult")]
)
def test_wrong_arguments(wrong, said):
    with pytest.raises(ValueError, match=f"progressive.{said}"):
        ProgressiveSize(**wrong)
