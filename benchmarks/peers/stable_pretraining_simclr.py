"""SimCLR as stable-pretraining's CIFAR-10 example builds it; run by `benchmarks/throughput.py`.

Prints the time after each step, for ever.
"""

from __future__ import annotations

import lightning as pl
import stable_pretraining as spt
import torch
import torchvision
from each_step import EachStep
from options import training_parser
from stable_pretraining.data import transforms
from stable_pretraining.forward import simclr


def make_view(size: int) -> transforms.Compose:
    return transforms.Compose(
        transforms.RGB(),
        transforms.RandomResizedCrop((size, size)),
        transforms.RandomHorizontalFlip(p=0.5),
        transforms.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1, p=0.8),
        transforms.RandomGrayscale(p=0.2),
        transforms.ToImage(**spt.data.static.CIFAR10),
    )


def main() -> None:
    args = training_parser().parse_args()

    files = torchvision.datasets.ImageFolder(args.images)
    views = transforms.MultiViewTransform([make_view(args.size), make_view(args.size)])
    dataset = spt.data.FromTorchDataset(files, names=["image", "label"], transform=views)
    loader = torch.utils.data.DataLoader(
        dataset,
        batch_size=args.batch,
        shuffle=True,
        drop_last=True,
        num_workers=args.workers,
        pin_memory=args.device == "cuda",
    )
    backbone = spt.backbone.from_torchvision("resnet18", low_resolution=args.stem == "small")
    backbone.fc = torch.nn.Identity()
    projector = torch.nn.Sequential(
        torch.nn.Linear(512, 512), torch.nn.BatchNorm1d(512), torch.nn.ReLU(inplace=True), torch.nn.Linear(512, 128)
    )
    module = spt.Module(
        backbone=backbone,
        projector=projector,
        forward=simclr,
        simclr_loss=spt.losses.NTXEntLoss(temperature=0.5),
        optim={"optimizer": {"type": "SGD", "lr": 0.06, "momentum": 0.9}, "scheduler": {"type": "ConstantLR"}},
    )
    trainer = pl.Trainer(
        max_epochs=10_000, precision={"32": "32-true", "bf16": "bf16-mixed"}[args.precision], devices=1,
        accelerator={"cpu": "cpu", "cuda": "gpu"}[args.device], callbacks=[EachStep()], logger=False,
        enable_checkpointing=False, enable_progress_bar=False, num_sanity_val_steps=0,
    )  # fmt: skip
    spt.Manager(trainer=trainer, module=module, data=spt.data.DataModule(train=loader))()


if __name__ == "__main__":
    main()
