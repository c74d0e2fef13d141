"""The callbacks that leave something in the run's folder or its metrics: weights, views, learning rate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import LightningModule, Trainer
from PIL import Image
from torch import Tensor, nn

from ssl_toolkit.batch import Batch, Images
from ssl_toolkit.callbacks import ExportWeights, LearningRate, SampleViews
from ssl_toolkit.modules.backbone import Backbone
from ssl_toolkit.tracking import Wandb, make_loggers
from ssl_toolkit.tracking.metrics_csv import read_metrics
from ssl_toolkit.weights import load_backbone, read_header

pytestmark = pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning")


class Loader:
    """Three batches of four random images."""

    def __len__(self) -> int:
        return 3

    def __iter__(self) -> Any:
        for index in range(3):
            pixels = torch.full((4, 3, 16, 16), 50 * index, dtype=torch.uint8)
            sizes = torch.full((4, 2), 16)
            yield Batch(Images(pixels, sizes), torch.arange(4), torch.full((4,), -1), 0)


class Tiny(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = Backbone("resnet10t", kwargs={"channels": [4, 4, 8, 8]})
        self.head = nn.Linear(8, 1)
        self.num_asked = 0
        self.drawn: list[float] = []

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self.drawn.append(torch.rand(()).item())
        return self.head(self.backbone(batch.images.pixels / 255)).square().mean()

    def example_views(self, batch: Batch) -> Tensor:
        self.num_asked += 1
        assert not torch.is_grad_enabled()
        torch.rand(100)
        return (batch.images.pixels / 255)[:, None].repeat(1, 2, 1, 1, 1)

    def weights_header(self) -> dict[str, Any]:
        return {"step": self.global_step}

    def configure_optimizers(self) -> Any:
        groups = [{"params": self.backbone.parameters(), "lr": 0.01}, {"params": self.head.parameters(), "lr": 0.1}]
        optimizer = torch.optim.SGD(groups, lr=0.1)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def fit(run: Path, callbacks: list[Any], task: LightningModule | None = None, **options: Any) -> LightningModule:
    torch.manual_seed(1)
    task = task or Tiny()
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        logger=options.pop("logger", False),
        default_root_dir=run,
        callbacks=callbacks,
        log_every_n_steps=1,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    trainer.fit(task, Loader())
    return task


def test_weights_are_written_at_the_end_of_epochs_and_of_the_run(tmp_path: Path) -> None:
    steps = []

    class Watch(ExportWeights):
        def _write(self, trainer: Trainer, pl_module: LightningModule) -> None:
            super()._write(trainer, pl_module)
            steps.append(read_header(tmp_path / "backbone.safetensors")["step"])

    task = fit(tmp_path, [Watch()], max_steps=5)
    assert steps == [3, 5]
    loaded = load_backbone(tmp_path / "backbone.safetensors").state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in task.backbone.state_dict().items())


def test_views_are_drawn_once_and_leave_the_run_alone(tmp_path: Path) -> None:
    plain, watched = fit(tmp_path / "plain", [], max_epochs=2), fit(tmp_path / "run", [SampleViews(3)], max_epochs=2)
    assert watched.num_asked == 1
    assert watched.drawn == plain.drawn
    picture = np.asarray(Image.open(tmp_path / "run" / "views.png"))
    # 3 rows and 2 columns of 16 pixels, enlarged 4 times, with gaps of 4
    assert picture.shape == (3 * 64 + 2 * 4, 2 * 64 + 4, 4)


def test_no_views_of_a_task_that_has_none(tmp_path: Path) -> None:
    task = Tiny()
    task.example_views = None  # pyright: ignore[reportAttributeAccessIssue]
    fit(tmp_path, [SampleViews()], task, max_steps=1)
    assert not (tmp_path / "views.png").exists()


def test_views_reach_wandb(tmp_path: Path) -> None:
    loggers = make_loggers(tmp_path, Wandb(mode="offline"))
    fit(tmp_path, [SampleViews()], max_steps=1, logger=loggers)
    assert len(list(tmp_path.glob("wandb/offline-run-*/files/media/images/views_*.png"))) == 1


def test_learning_rate_is_that_of_the_step(tmp_path: Path) -> None:
    fit(tmp_path, [LearningRate()], max_steps=3, logger=make_loggers(tmp_path, "none"))
    assert read_metrics(tmp_path)["train/lr"] == pytest.approx([0.1, 0.05, 0.025])


def test_refuses_no_images() -> None:
    with pytest.raises(ValueError, match="num_images is 0, expected at least 1"):
        SampleViews(0)
