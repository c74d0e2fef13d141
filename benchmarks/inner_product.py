"""What an MLP only approximates: the inner product of two inputs, learned by an MLP and by a multiplicative layer.

    python benchmarks/inner_product.py --json inner_product.json --picture inner_product.png

Two random vectors (normal; their inner product has the variance 1) are the input, the inner product is the target. Each
network trains for the same steps by Adam on new samples, at the best of three rates by its training loss. The figure is
the error on new samples, as a fraction of the target's variance (0 is perfect, 1 is always saying 0): of vectors as in
training, and of vectors that are twice as long.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from measuring import add_outputs, save_small, write_json
from torch import Tensor, nn

from ssl_toolkit.modules.mlp import mlp
from ssl_toolkit.modules.multiplicative import MultiplicativeInteraction

RATES = (0.0003, 0.001, 0.003)
BATCH = 512
TESTED = 20_000


class SideBySide(nn.Module):
    """An MLP on two vectors side by side: two hidden layers with ReLU."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.layers = mlp([2 * width, hidden, hidden, 1], norm=False)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        return self.layers(torch.cat([x, z], dim=1))


def networks(width: int) -> dict[str, Callable[[], nn.Module]]:
    """Each network by its name."""
    return {
        "multiplicative, full": lambda: MultiplicativeInteraction(width, width, 1),
        "multiplicative, rank = width": lambda: MultiplicativeInteraction(width, width, 1, rank=width),
        **{f"MLP, {hidden} hidden": lambda hidden=hidden: SideBySide(width, hidden) for hidden in (32, 128, 512)},
    }


def draw(width: int, number: int, generator: torch.Generator, longer: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """Two vectors for each sample, and their inner products, whose variance is 1 if the vectors are not longer."""
    x, z = (torch.randn(number, width, generator=generator) * longer for _ in range(2))
    return x, z, (x * z).sum(dim=1, keepdim=True) / width**0.5


def train(make: Callable[[], nn.Module], width: int, steps: int, rate: float, seed: int) -> tuple[nn.Module, float]:
    """The trained network, and its mean loss in the last tenth of the steps."""
    torch.manual_seed(seed)
    network, generator = make(), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(network.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    losses: list[float] = []
    for _ in range(steps):
        x, z, target = draw(width, BATCH, generator)
        loss = nn.functional.mse_loss(network(x, z), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
    return network.eval(), statistics.fmean(losses[-max(1, steps // 10) :])


@torch.no_grad()
def error(network: nn.Module, width: int, longer: float) -> float:
    """The squared error on new samples, as a fraction of the target's variance."""
    x, z, target = draw(width, TESTED, torch.Generator().manual_seed(10_000), longer)
    return float((network(x, z) - target).square().mean() / target.var())


def draw_errors(file: Path | None, rows: list[dict[str, Any]], widths: list[int]) -> None:
    """The error of each network by the width of the vectors; nothing without a file."""
    if not file:
        return
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name in networks(widths[0]):
        points = [(row["width"], statistics.median(row["error"])) for row in rows if row["network"] == name]
        dashed = "--" if name.startswith("MLP") else "-"
        axes.plot(*zip(*points, strict=True), marker="o", linestyle=dashed, label=name)
    axes.set(xscale="log", yscale="log", xlabel="width of each vector", ylabel="squared error / variance of the target")
    axes.set_xticks(widths, [str(width) for width in widths])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend()
    save_small(figure, file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="+", default=[4, 16, 64])
    parser.add_argument("--steps", type=int, default=2000, help="of 512 samples each")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    add_outputs(parser)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for width in args.widths:
        for name, make in networks(width).items():
            tried = {rate: train(make, width, args.steps, rate, args.seeds[0]) for rate in RATES}
            rate = min(tried, key=lambda rate: tried[rate][1])
            trained = [tried[rate][0], *(train(make, width, args.steps, rate, seed)[0] for seed in args.seeds[1:])]
            parameters = sum(each.numel() for each in trained[0].parameters())
            near, far = ([error(network, width, longer) for network in trained] for longer in (1.0, 2.0))
            rows.append(
                {
                    "width": width,
                    "network": name,
                    "parameters": parameters,
                    "rate": rate,
                    "error": near,
                    "error, twice as long": far,
                }
            )
            print(
                f"{width:3}  {name:30} {parameters:9,} parameters  error {max(near):.2g}, twice as long {max(far):.2g}",
                flush=True,
            )
    write_json(args.json, {"steps": args.steps, "seeds": args.seeds, "rows": rows})
    draw_errors(args.picture, rows, args.widths)


if __name__ == "__main__":
    main()
