"""SimCLR as lightly's documentation builds it; run by `benchmarks/throughput.py` in an environment that has lightly.

Prints the time after each step, for ever.
"""

from __future__ import annotations

from contextlib import nullcontext

import timm
import torch
from lightly.data import LightlyDataset
from lightly.loss import NTXentLoss
from lightly.models.modules.heads import SimCLRProjectionHead
from lightly.transforms import SimCLRTransform
from options import training_parser
from step_clock import StepClock
from torch import nn


def make_backbone(stem: str) -> nn.Module:
    backbone = timm.create_model("resnet18", num_classes=0)
    if stem == "small":
        backbone.conv1 = nn.Conv2d(3, 64, 3, stride=1, padding=1, bias=False)
        backbone.maxpool = nn.Identity()
    return backbone


def main() -> None:
    parser = training_parser()
    parser.add_argument("--layout", choices=["contiguous", "channels_last"], required=True)
    args = parser.parse_args()

    device = torch.device(args.device)
    memory_format = torch.channels_last if args.layout == "channels_last" else torch.contiguous_format
    backbone = make_backbone(args.stem).to(device, memory_format=memory_format)
    head = SimCLRProjectionHead(512, 512, 128).to(device)
    criterion = NTXentLoss()
    optimizer = torch.optim.SGD([*backbone.parameters(), *head.parameters()], lr=0.06)
    dataset = LightlyDataset(args.images, transform=SimCLRTransform(input_size=args.size, gaussian_blur=0.0))
    loader = torch.utils.data.DataLoader(
        dataset,
        batch_size=args.batch,
        shuffle=True,
        drop_last=True,
        num_workers=args.workers,
        persistent_workers=args.workers > 0,
        pin_memory=device.type == "cuda",
    )
    autocast = torch.autocast(device.type, torch.bfloat16) if args.precision == "bf16" else nullcontext()
    clock = StepClock()
    while True:
        for batch in loader:
            first, second = (view.to(device, memory_format=memory_format, non_blocking=True) for view in batch[0])
            with autocast:
                loss = criterion(head(backbone(first)), head(backbone(second)))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            clock.tick()


if __name__ == "__main__":
    main()
