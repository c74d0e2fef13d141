"""Sample views: a picture of what a pretext task sees."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger

from ssl_toolkit.batch import Batch, Images
from ssl_toolkit.io.atomic import write_atomically
from ssl_toolkit.report.tiles import tile, to_png

FILE = "views.png"


class SampleViews(Callback):
    """Writes ``RUN/views.png`` at step 0, and sends it to W&B: a row for each image, its views side by side.

    A wrong mean, a crop that is too narrow or a jitter that is too strong shows here at once and in no curve.
    A task takes part by a method ``example_views(batch)`` that returns its views as a float tensor of shape
    ``[num_images, num_views, channels, height, width]`` in [0, 1].

    Args:
        num_images: How many images of the first batch are shown, at least 1.
    """

    def __init__(self, num_images: int = 8) -> None:
        if num_images < 1:
            raise ValueError(f"SampleViews: num_images is {num_images}, expected at least 1")
        self.num_images = num_images

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Draws the picture before the first step; a resumed run has it already."""
        example_views = getattr(pl_module, "example_views", None)
        if trainer.global_step > 0 or batch_idx > 0 or example_views is None or not trainer.is_global_zero:
            return
        devices = [pl_module.device] if pl_module.device.type == "cuda" else []
        # the picture must not change the run: neither a gradient nor a random number of it
        with torch.no_grad(), torch.random.fork_rng(devices=devices):
            views = example_views(_first(batch, self.num_images))
        pixels = views[: self.num_images].detach().float().cpu().permute(0, 1, 3, 4, 2).numpy()
        picture = tile(pixels)
        write_atomically(Path(trainer.default_root_dir) / FILE, to_png(picture))
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_image("views", [picture], step=0)


def _first(batch: Any, num: int) -> Any:
    if not isinstance(batch, Batch):
        return batch
    images = Images(batch.images.pixels[:num], batch.images.sizes[:num])
    return Batch(images, batch.indices[:num], batch.labels[:num], batch.epoch)
