"""lightly's own SimCLR example (examples/pytorch_lightning/simclr.py) on a folder, with a 3x3 stem for 32 px.

Run by `benchmarks/startup.py` and `benchmarks/time_to_accuracy.py` in an environment that has lightly. The settings
are the example's: batch 256, plain SGD with a rate of 0.06, its transform and its head.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

import pytorch_lightning as pl
import torch
import torchvision
from lightly.data import LightlyDataset
from lightly.loss import NTXentLoss
from lightly.models.modules import SimCLRProjectionHead
from lightly.transforms.simclr_transform import SimCLRTransform
from torch import nn


class SimCLR(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = torchvision.models.resnet18()
        self.backbone.conv1 = nn.Conv2d(3, 64, 3, stride=1, padding=1, bias=False)
        self.backbone.maxpool = nn.Identity()
        self.backbone.fc = nn.Identity()
        self.projection_head = SimCLRProjectionHead(512, 2048, 2048)
        self.criterion = NTXentLoss()

    def training_step(self, batch, batch_index):
        first, second = (self.projection_head(self.backbone(view)) for view in batch[0])
        return self.criterion(first, second)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.06)


class FirstStep(pl.Callback):
    def on_train_batch_end(self, *_):
        seconds = time.time() - float(os.environ["STARTED_AT"])
        print(json.dumps({"seconds": seconds}), flush=True)
        os._exit(0)


class Snapshots(pl.Callback):
    """Saves the backbone after given minutes of training, and stops after the last.

    With a rate in images a second a minute is not one of the clock but 60 times as many images.
    """

    def __init__(self, minutes: list[float], folder: Path, rate: float | None) -> None:
        self.minutes = sorted(minutes)
        self.rate = rate
        self.folder = folder
        self.start = 0.0
        self.images = 0

    def on_train_start(self, *_):
        self.start = time.perf_counter()

    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        self.images += len(batch[0][0])
        seconds = self.images / self.rate if self.rate else time.perf_counter() - self.start
        minutes = seconds / 60
        if minutes >= self.minutes[0]:
            torch.save(module.backbone.state_dict(), self.folder / f"{self.minutes.pop(0):g}.pt")
            print(json.dumps({"minutes": minutes, "images": self.images}), flush=True)
            trainer.should_stop = not self.minutes


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", required=True)
    parser.add_argument("--precision", choices=["32", "bf16"], default="32")
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--minutes", type=float, nargs="*", help="when to save the backbone; none: stop after one step")
    parser.add_argument("--rate", type=float, help="images a second, to count minutes by images")
    parser.add_argument("--folder", type=Path)
    args = parser.parse_args()
    dataset = LightlyDataset(args.images, transform=SimCLRTransform(input_size=32))
    loader = torch.utils.data.DataLoader(
        dataset, batch_size=args.batch, shuffle=True, drop_last=True, num_workers=args.workers
    )
    callback = Snapshots(args.minutes, args.folder, args.rate) if args.minutes else FirstStep()
    precision = {"32": "32-true", "bf16": "bf16-mixed"}[args.precision]
    trainer = pl.Trainer(
        max_epochs=10_000, devices=1, accelerator="auto", precision=precision, callbacks=[callback], logger=False,
        enable_checkpointing=False, enable_progress_bar=False,
    )  # fmt: skip
    trainer.fit(SimCLR(), loader)


if __name__ == "__main__":
    main()
