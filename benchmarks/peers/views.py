"""SimCLR views by lightly, kornia or torchvision, from images in memory; run by `benchmarks/augment.py`.

Prints the time after each batch of two views, for ever.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator

import torch
from torch import nn


def lightly(size: int, pixels: torch.Tensor) -> Iterator[object]:
    """lightly's transform on Pillow images, in two worker processes."""
    from lightly.transforms import SimCLRTransform
    from PIL import Image

    small = {"cj_strength": 0.5, "gaussian_blur": 0.0} if size == 32 else {}
    transform = SimCLRTransform(input_size=size, **small)
    images = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in pixels]

    class InMemory(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return 100_000

        def __getitem__(self, index: int) -> list[torch.Tensor]:
            return transform(images[index % len(images)])

    while True:
        yield from torch.utils.data.DataLoader(InMemory(), batch_size=len(images), num_workers=2)


def kornia(size: int, pixels: torch.Tensor) -> Iterator[object]:
    """Batches of tensors, with separate parameters for each sample."""
    from kornia import augmentation

    strength = 0.5 if size == 32 else 1.0
    jitter = [0.8 * strength, 0.8 * strength, 0.8 * strength, 0.2 * strength]
    steps = [
        augmentation.RandomResizedCrop((size, size), scale=(0.08, 1.0)),
        augmentation.RandomHorizontalFlip(),
        augmentation.ColorJitter(*jitter, p=0.8),
        augmentation.RandomGrayscale(p=0.2),
    ]
    if size != 32:
        steps.append(augmentation.RandomGaussianBlur((23, 23), (0.1, 2.0), p=0.5))
    return two_views(nn.Sequential(*steps), pixels)


def torchvision(size: int, pixels: torch.Tensor) -> Iterator[object]:
    """Tensors, image by image."""
    from torchvision.transforms import v2

    strength = 0.5 if size == 32 else 1.0
    jitter = v2.ColorJitter(0.8 * strength, 0.8 * strength, 0.8 * strength, 0.2 * strength)
    steps = [
        v2.RandomResizedCrop(size, scale=(0.08, 1.0), antialias=True),
        v2.RandomHorizontalFlip(),
        v2.RandomApply([jitter], 0.8),
        v2.RandomGrayscale(0.2),
    ]
    if size != 32:
        steps.append(v2.RandomApply([v2.GaussianBlur(23, (0.1, 2.0))], 0.5))
    one = v2.Compose(steps)
    return two_views(lambda images: torch.stack([one(image) for image in images]), pixels)


def two_views(make: Callable[[torch.Tensor], torch.Tensor], pixels: torch.Tensor) -> Iterator[object]:
    while True:
        images = pixels.float() / 255
        yield make(images), make(images)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("who", choices=["lightly", "kornia", "torchvision"])
    parser.add_argument("--size", type=int, required=True)
    parser.add_argument("--image_size", type=int, required=True)
    parser.add_argument("--batch", type=int, required=True)
    args = parser.parse_args()
    pixels = torch.randint(0, 256, (args.batch, 3, args.image_size, args.image_size), dtype=torch.uint8)
    make = {"lightly": lightly, "kornia": kornia, "torchvision": torchvision}[args.who]
    with torch.no_grad():
        for _ in make(args.size, pixels):
            print(time.monotonic(), flush=True)


if __name__ == "__main__":
    main()
