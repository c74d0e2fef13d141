"""How many SimCLR views a second: `RandomView`, beside torchvision image by image, and kornia where it is installed.

    python benchmarks/augment.py --size 32 96 --batch 256 --json augment.json

The recipe is SimCLR's for small images (crop 0.08 to 1, flip, colour jitter 0.4, 0.4, 0.4, 0.1 with probability 0.8,
greyscale 0.2; no blur), from uint8 images of the size of the views to float views. Each row is the fastest of several
repetitions, since other programs can only make it slower.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torchvision.transforms import v2

from ssl_toolkit.augment import RandomView
from ssl_toolkit.augment.jitter import Form
from ssl_toolkit.batch import Images
from ssl_toolkit.random import sample_keys

JITTER = (0.4, 0.4, 0.4, 0.1)


def ours(size: int, form: Form) -> Callable[[Tensor], Tensor]:
    brightness, contrast, saturation, hue = JITTER
    view = RandomView(size, brightness=brightness, contrast=contrast, saturation=saturation, hue=hue, blur=0, form=form)

    def make(pixels: Tensor) -> Tensor:
        indices = torch.arange(len(pixels), device=pixels.device)
        return view(Images(pixels, torch.full_like(indices, size)[:, None].expand(-1, 2)), sample_keys(0, 0, indices))

    return make


def torchvision(size: int) -> Callable[[Tensor], Tensor]:
    transform = v2.Compose(
        [
            v2.RandomResizedCrop(size, antialias=True),
            v2.RandomHorizontalFlip(),
            v2.RandomApply([v2.ColorJitter(*JITTER)], 0.8),
            v2.RandomGrayscale(0.2),
            v2.ToDtype(torch.float32, scale=True),
        ]
    )
    return lambda pixels: torch.stack([transform(image) for image in pixels])


def kornia(size: int) -> Callable[[Tensor], Tensor] | None:
    """The same recipe, but for antialiasing, which kornia's crop has not; None if kornia is not installed."""
    try:
        from kornia import augmentation  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None
    transform = torch.nn.Sequential(
        augmentation.RandomResizedCrop((size, size)),
        augmentation.RandomHorizontalFlip(),
        augmentation.ColorJitter(*JITTER, p=0.8),
        augmentation.RandomGrayscale(p=0.2),
    )
    return lambda pixels: transform(pixels.float() / 255)


def views_per_second(make: Callable[[Tensor], Tensor], pixels: Tensor, seconds: float) -> float:
    """The speed of the fastest repetition within the time, after one to warm up."""
    make(pixels)
    fastest, start = float("inf"), time.perf_counter()
    while time.perf_counter() - start < seconds:
        begin = time.perf_counter()
        make(pixels)
        if pixels.device.type == "cuda":
            torch.cuda.synchronize()
        fastest = min(fastest, time.perf_counter() - begin)
    return len(pixels) / fastest


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", type=int, nargs="+", default=[32, 96, 224], help="sides of the views in pixels")
    parser.add_argument("--batch", type=int, default=256, help="images in a batch")
    parser.add_argument("--seconds", type=float, default=5.0, help="time for each row and size")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, ...")
    parser.add_argument("--json", type=Path, help="a file to write the figures to")
    args = parser.parse_args()

    results: dict[str, dict[int, float | None]] = {}
    for size in args.size:
        pixels = torch.randint(0, 256, (args.batch, 3, size, size), dtype=torch.uint8, device=args.device)
        makers = {
            "ssl-toolkit, exact": ours(size, "exact"),
            "ssl-toolkit, fused": ours(size, "fused"),
            "torchvision v2, image by image": torchvision(size),
            "kornia": kornia(size),
        }
        for name, make in makers.items():
            speed = views_per_second(make, pixels, args.seconds) if make else None
            results.setdefault(name, {})[size] = speed

    title = f"views/s, batches of {args.batch} on {args.device}, {torch.get_num_threads()} threads"
    table = Table("", *[f"{size} px" for size in args.size], title=title)
    for name, speeds in results.items():
        table.add_row(name, *["not installed" if speed is None else f"{speed:,.0f}" for speed in speeds.values()])
    Console().print(table)
    if args.json:
        settings = {"batch": args.batch, "device": args.device, "threads": torch.get_num_threads()}
        args.json.write_text(json.dumps({**settings, "views_per_second": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
