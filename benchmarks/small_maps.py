"""What convolutions on small maps cost as fully connected layers, beside torch's own convolutions.

    python benchmarks/small_maps.py
    python benchmarks/small_maps.py --precision float32

Forward and backward pass of ResNet-18 alone, for two views of a batch of images of 32 pixels. The two ways alternate;
the ratio is the median of what is found within a round.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from measuring import add_outputs, draw_bars, median_and_range, write_json
from torch import nn

from ssl_toolkit import Backbone
from ssl_toolkit.modules.small_maps import SmallMapConv2d
from ssl_toolkit.run_folder import processor

NARROW = {"channels": [32, 64, 128, 256]}
NETWORKS = {
    "standard stem": {"stem": "standard"},
    "middle stem": {"stem": "middle"},
    "middle stem, half as wide": {"stem": "middle", "kwargs": NARROW},
    "small stem": {"stem": "small"},
}


def step(backbone: Backbone, images: torch.Tensor, precision: torch.dtype) -> float:
    """Seconds of a forward and a backward pass."""
    start = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16, enabled=precision is torch.bfloat16):
        features = backbone(images)
    features.float().square().mean().backward()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--precision", choices=["bfloat16", "float32"], default="bfloat16", help="of the convolutions")
    parser.add_argument("--batch", type=int, default=128, help="images, of each of which there are two views")
    parser.add_argument("--rounds", type=int, default=7, help="passes of each way")
    add_outputs(parser)
    args = parser.parse_args()
    precision = getattr(torch, args.precision)
    images = torch.rand(2 * args.batch, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    results = {}
    print(f"{processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}, {args.precision}")
    for name, options in NETWORKS.items():
        quick = Backbone("resnet18", **options).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        own = Backbone("resnet18", **options).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        for layer in own.modules():
            if isinstance(layer, SmallMapConv2d):
                layer.__class__ = nn.Conv2d  # pyright: ignore[reportAttributeAccessIssue] - back to what it was
        rounds = [[step(each, images, precision) for each in (own, quick)] for _ in range(args.rounds + 1)][1:]
        ratios = [torch_own / linear for torch_own, linear in rounds]
        seconds = [min(each) for each in zip(*rounds, strict=True)]
        print(
            f"{name}: {args.batch / seconds[0]:.0f} images/s with torch's convolutions, "
            f"{args.batch / seconds[1]:.0f} with fully connected layers, ratio {median_and_range(ratios)}"
        )
        results[name] = {"seconds": seconds, "ratios": ratios, "ratio": statistics.median(ratios)}
    write_json(args.json, results)
    draw_bars(
        args.picture, {"images a second, to torch's": {name: each["ratios"] for name, each in results.items()}}, "ratio"
    )


if __name__ == "__main__":
    main()
