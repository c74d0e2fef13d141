"""Batch size against learning rate: which pairs train, and where the linear rule holds.

    python benchmarks/batch_size_and_rate.py --picture docs/pictures/batch_size_and_rate.png --json rates.json

A small CNN learns to tell the built-in images apart, in plain SGD without momentum, for the same number of epochs with
every batch size. On the diagonals of the picture the rate over the batch size is constant (Goyal et al. 2017, arXiv
1706.02677, section 2.1).
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from measuring import add_outputs, write_json
from numpy.typing import NDArray
from torch import Tensor, nn

from ssl_toolkit.data import ImageData
from ssl_toolkit.optim import SGD, parameter_groups
from ssl_toolkit.random import sample_order
from ssl_toolkit.schedule import Linear

SIZE = 16
TEST_IMAGES = 500


def images(num: int) -> tuple[Tensor, Tensor]:
    """Built-in images, small, with mean 0, and their classes."""
    data = ImageData(source="procedural", max_images=num + TEST_IMAGES, image_size=64, val_fraction=0.0, batch_size=100)
    data.setup("fit")
    batches = list(data.loader("train"))
    pixels = torch.cat([batch.images.pixels for batch in batches]).float() / 255
    pixels = F.interpolate(pixels, size=(SIZE, SIZE), mode="area")
    return (pixels - pixels.mean((0, 2, 3), keepdim=True)) / pixels.std(), torch.cat(
        [batch.labels for batch in batches]
    )


def network() -> nn.Module:
    """Three convolutions without normalisation, which would make the length of a step meaningless."""
    layers: list[nn.Module] = []
    for before, after in ((3, 16), (16, 32), (32, 64)):
        layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * (SIZE // 8) ** 2, 10))


def train(x: Tensor, y: Tensor, batch: int, lr: float, epochs: int, seed: int) -> tuple[float, float]:
    """Trains; the loss of the training images at the end and the accuracy on those held out."""
    torch.manual_seed(seed)
    net, num = network(), len(x) - TEST_IMAGES
    optimizer = SGD(lr=lr, momentum=0.0, weight_decay=0.0).build(parameter_groups(net, lr, 0.0), fused=True)
    schedule, steps, step = Linear(), epochs * (num // batch), 0
    for epoch in range(epochs):
        for chosen in sample_order(seed, epoch, num)[: num // batch * batch].split(batch):
            for group in optimizer.param_groups:
                group["lr"] = lr * schedule.factor(step, steps, num // batch)
            loss = F.cross_entropy(net(x[chosen]), y[chosen])
            if not loss.isfinite():
                return float("nan"), 0.1
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
    with torch.no_grad():
        fitted = float(F.cross_entropy(net(x[:num]), y[:num]))
        return fitted, float((net(x[num:]).argmax(dim=1) == y[num:]).float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--num_images", type=int, default=1024, help="images to train on")
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 4, 16, 64, 256, 1024], help="batch sizes")
    parser.add_argument("--rates", type=float, nargs="*", default=[0.001 * 4**k for k in range(8)], help="rates")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seeds", type=int, default=2, help="how many seeds; the mean is shown")
    add_outputs(parser)
    args = parser.parse_args()
    torch.set_num_threads(1)
    x, y = images(args.num_images)
    started = time.monotonic()
    figures = np.full((2, len(args.batches), len(args.rates)), np.nan)
    for row, batch in enumerate(args.batches):
        for column, rate in enumerate(args.rates):
            # a step on one image costs much more time for an image: one seed has to do
            seeds = range(1 if batch < 16 else args.seeds)
            figures[:, row, column] = np.mean([train(x, y, batch, rate, args.epochs, seed) for seed in seeds], axis=0)
        best = args.rates[int(np.argmax(figures[1, row]))]
        cells = " ".join(f"{100 * each:5.1f}" for each in figures[1, row])
        print(f"batch {batch:5}: accuracy {cells} %, best at {best:g}", flush=True)
    minutes = (time.monotonic() - started) / 60
    print(f"{minutes:.1f} minutes on one core, {args.seeds} seeds (1 of the batches below 16)")
    names = {"batches": args.batches, "rates": args.rates, "minutes": round(minutes, 1)}
    write_json(args.json, {**names, "train_loss": figures[0].tolist(), "accuracy": figures[1].tolist()})
    if args.picture:
        draw(args.picture, args.batches, args.rates, figures)


def draw(file: Path, batches: list[int], rates: list[float], figures: NDArray[np.float64]) -> None:
    """Two heat maps, with the best rate of each batch, and the line on which the rate is in proportion to the batch."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, 3.3), layout="constrained")
    for axes, values, title in zip(
        figure.subplots(1, 2),
        (np.minimum(figures[0], 2.5), 100 * figures[1]),
        ("training loss at the end", "top-1 of images held out, %"),
        strict=True,
    ):
        colours = "viridis_r" if "loss" in title else "viridis"
        axes.imshow(values, cmap=colours, aspect="auto", origin="lower")
        for (row, column), value in np.ndenumerate(values):
            text = "–" if np.isnan(value) else f"{value:.0f}" if "%" in title else f"{value:.2f}"
            # dark on light and light on dark, whichever way the colours go
            lit = (value - np.nanmin(values)) / np.ptp(values[np.isfinite(values)])
            dark = (lit < 0.6) != ("loss" in title)
            axes.text(column, row, text, ha="center", va="center", fontsize=6.5, color="white" if dark else "black")
        best = np.argmax(figures[1], axis=1)
        axes.plot(best, range(len(batches)), "o", markersize=17, markerfacecolor="none", markeredgecolor="#d55e00")
        # through the best rate of the second batch size: one step of the rates is a factor of 4, as one of the batches
        places = np.log(np.array(batches) / batches[1]) / np.log(rates[1] / rates[0]) + best[1]
        axes.plot(places, range(len(batches)), "--", color="#d55e00", linewidth=1.2)
        axes.set(xlim=(-0.5, len(rates) - 0.5), ylim=(-0.5, len(batches) - 0.5), xlabel="learning rate")
        axes.set_xticks(range(len(rates)), [f"{rate:.3g}" for rate in rates], fontsize=7)
        axes.set_yticks(range(len(batches)), [f"{batch:,}" for batch in batches], fontsize=7)
        axes.set_ylabel("batch size")
        axes.set_title(title, fontsize=9)
    figure.savefig(file, dpi=110)


if __name__ == "__main__":
    main()
