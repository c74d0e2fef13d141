"""The ways of the optimizers: over a zig-zag bowl, and down the training loss of a small CNN on the built-in images.

    python benchmarks/optimizer_paths.py --json optimizer_paths.json --picture docs/pictures/optimizer_paths.png

The bowl is a quadratic in two weights, 25 times as steep across as along, turned by 25 degrees so that neither axis is
that of a weight. The CNN is a narrow ResNet-10 with 32 px images. All optimizers make equally many steps, without
weight decay and with a constant rate. On the bowl the rate is the best of a grid; for the CNN it is
the default times 1, 3, 10 ... (or 0.3, 0.1 ...) as far as that gets better with seed 0; what is reported comes of other
seeds.
"""

from __future__ import annotations

import argparse
import inspect
import math
import statistics
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from measuring import add_outputs, save_small, write_json

if TYPE_CHECKING:
    from torch import Tensor

    from ssl_toolkit.optim import OptimizerSpec

    Make = Callable[[float], OptimizerSpec]

# on the bowl
START = (-4.0, -0.9)
STEEPNESS = (1.0, 25.0)
TURN = math.radians(25)
RATES = [base * 10.0**power for power in range(-3, 2) for base in (1, 1.5, 2, 3, 5, 7)]

FACTORS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
IMAGE_SIZE = 32
NUM_IMAGES = 2000
BATCH_SIZE = 32
NETWORK = {"stem_width": 8, "channels": [8, 16, 32, 64]}

# what the picture shows, in groups with a diagram each; Muon is for matrices, and on two weights it is AdamW
PANELS = {
    "a gradient, or its running sum": ["SGD", "SGD, momentum", "SGD, Nesterov"],
    "over the root of squares": ["Adagrad", "RMSprop"],
    "both, or the sign": ["Adam", "Lion"],
}
COLOURS = {
    "SGD": "#7f7f7f", "SGD, momentum": "#1f77b4", "SGD, Nesterov": "#2ca02c", "Adagrad": "#ff7f0e",
    "RMSprop": "#9467bd", "Adam": "#d62728", "Lion": "#17becf", "Muon": "#111111",
}  # fmt: skip


def optimizers() -> dict[str, tuple[float, Make]]:
    """Each optimizer's default rate, and what makes it from a rate, by name; without weight decay."""
    from ssl_toolkit import optim
    from ssl_toolkit.optim import SGD, OptimizerSpec

    found: dict[str, tuple[float, Make]] = {
        "SGD": (0.1, lambda lr: SGD(lr, momentum=0, weight_decay=0)),
        "SGD, momentum": (0.1, lambda lr: SGD(lr, weight_decay=0)),
        "SGD, Nesterov": (0.1, lambda lr: SGD(lr, nesterov=True, weight_decay=0)),
    }
    for name in optim.__all__:
        kind = getattr(optim, name)
        if inspect.isclass(kind) and issubclass(kind, OptimizerSpec) and kind not in (OptimizerSpec, SGD):
            found[name] = default_lr(kind), lambda lr, kind=kind: kind(lr=lr, weight_decay=0)
    return found


def default_lr(kind: type) -> float:
    return inspect.signature(kind).parameters["lr"].default


def height(x: Any, y: Any) -> Any:
    along, across = x * math.cos(TURN) + y * math.sin(TURN), y * math.cos(TURN) - x * math.sin(TURN)
    return (STEEPNESS[0] * along**2 + STEEPNESS[1] * across**2) / 2


def walk(spec: OptimizerSpec, num_steps: int) -> tuple[list[list[float]], list[float]]:
    """The weights and the height before each step and after the last."""
    import torch
    from torch import nn

    from ssl_toolkit.optim import parameter_groups

    weights = nn.Parameter(torch.tensor(START))
    groups = parameter_groups(nn.ParameterList([weights]), spec.lr, spec.weight_decay)
    optimizer = spec.build(groups)
    places, heights = [], []
    for _ in range(num_steps + 1):
        loss = height(*weights)
        places.append(weights.tolist())
        heights.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return places, heights


def best_walk(make: Make, num_steps: int) -> dict[str, Any]:
    """The walk of the rate with the lowest mean of the heights' logarithms: it gets down soon, and stays there."""

    def log_mean(heights: list[float]) -> float:
        mean = statistics.mean(math.log(height + 1e-6) for height in heights)
        return mean if math.isfinite(mean) else math.inf

    walks = {rate: walk(make(rate), num_steps) for rate in RATES}
    rate = min(walks, key=lambda rate: log_mean(walks[rate][1]))
    return {"lr": rate, "places": walks[rate][0], "heights": walks[rate][1]}


def train(spec: OptimizerSpec, images: Tensor, labels: Tensor, num_steps: int, seed: int) -> list[float]:
    """The loss of each step's batch; the same batches and first weights for each optimizer."""
    import torch
    import torch.nn.functional as F
    from torch import nn

    from ssl_toolkit.modules.backbone import Backbone
    from ssl_toolkit.optim import parameter_groups

    torch.manual_seed(seed)
    backbone = Backbone("resnet10t", kwargs=NETWORK)
    network = nn.Sequential(backbone, nn.Linear(backbone.num_features, 10))
    network = network.train().to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    optimizer = spec.build(parameter_groups(network, spec.lr, spec.weight_decay), fused=True)
    generator = torch.Generator().manual_seed(seed)
    losses = []
    for _ in range(num_steps):
        chosen = torch.randint(len(images), (BATCH_SIZE,), generator=generator)
        loss = F.cross_entropy(network(images[chosen]), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
        if not math.isfinite(losses[-1]):
            return losses + [math.inf] * (num_steps - len(losses))
    return losses


def final(losses: list[float]) -> float:
    """The mean of the last steps' losses."""
    mean = statistics.mean(losses[-max(1, len(losses) // 10) :])
    return mean if math.isfinite(mean) else math.inf


def compare(make: Make, default: float, num_steps: int, num_seeds: int, data: tuple[Tensor, Tensor]) -> dict[str, Any]:
    """The curves of the rate that is best with seed 0, with the seeds from 1 on."""
    found: dict[float, float] = {}
    for factors in (FACTORS[FACTORS.index(1) :], FACTORS[FACTORS.index(1) :: -1]):
        for factor in factors:
            if factor not in found:
                found[factor] = final(train(make(default * factor), *data, num_steps, seed=0))
            if found[factor] > min(found.values()):
                break
    factor = min(found, key=lambda factor: found[factor])
    curves = [train(make(default * factor), *data, num_steps, seed) for seed in range(1, num_seeds + 1)]
    return {"lr": default * factor, "factor": factor, "grid": found, "curves": curves}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bowl-steps", type=int, default=60, help="steps on the bowl")
    parser.add_argument("--steps", type=int, default=120, help="steps of the CNN")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of the CNN's curves: 1, 2, ...")
    add_outputs(parser)
    args = parser.parse_args()
    import torch

    from ssl_toolkit.data.procedural import ProceduralSource
    from ssl_toolkit.perf.malloc import keep_freed_memory

    keep_freed_memory()
    source = ProceduralSource(NUM_IMAGES, IMAGE_SIZE)
    images = torch.from_numpy(source.render(range(NUM_IMAGES))).permute(0, 3, 1, 2).float() / 255
    data = images, torch.tensor([source.label(index) for index in range(NUM_IMAGES)])
    found = optimizers()
    shown = [name for names in PANELS.values() for name in names]
    walks = {name: best_walk(found[name][1], args.bowl_steps) for name in shown}
    networks = {}
    for name, (default, make) in found.items():
        networks[name] = compare(make, default, args.steps, args.seeds, data)
        print(f"{name}: {networks[name]['lr']:.2g}", file=sys.stderr)
    report(walks, networks)
    write_json(args.json, {"bowl": walks, "network": networks})
    if args.picture:
        draw(args.picture, walks, networks)


def report(walks: Mapping[str, Any], networks: Mapping[str, Any]) -> None:
    """Prints the table, as the page has it."""
    print("| optimizer | rate | of the default | training loss | lowest to highest | bowl: rate | height |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name, each in sorted(networks.items(), key=lambda item: statistics.mean(map(final, item[1]["curves"]))):
        ends = [final(curve) for curve in each["curves"]]
        bowl = f"{walks[name]['lr']:g} | {walks[name]['heights'][-1]:.1g}" if name in walks else " | "
        print(
            f"| {name} | {each['lr']:.2g} | {each['factor']:g} | {statistics.mean(ends):.2f} | "
            f"{min(ends):.2f}-{max(ends):.2f} | {bowl} |"
        )


def draw(file: Any, walks: Mapping[str, Any], networks: Mapping[str, Any]) -> None:
    """Draws the paths above, and the losses below."""
    import numpy as np
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 7.2), layout="constrained")
    halves: Any = figure.subfigures(2, 1, height_ratios=(1, 1.15))
    top, bottom = halves
    x, y = np.meshgrid(np.linspace(-5, 2, 200), np.linspace(-3, 2.2, 150))
    bowls: Any = top.subplots(1, len(PANELS), sharey=True)
    for axes, (title, names) in zip(bowls, PANELS.items(), strict=True):
        axes.contour(x, y, height(x, y), levels=np.geomspace(0.1, 100, 9), colors="#d5d9e0", linewidths=0.8)
        for name in names:
            places = np.array(walks[name]["places"])
            label = f"{name} ({walks[name]['lr']:g})"
            axes.plot(*places.T, marker=".", markersize=4, linewidth=1.2, color=COLOURS[name], label=label)
        axes.plot(0, 0, marker="*", color="black", markersize=10, linestyle="none")
        axes.set(title=title, xlim=(-5, 2), ylim=(-3, 2.2), xlabel="first weight")
        axes.legend(fontsize=9, loc="upper left", framealpha=0.9)
    bowls[0].set_ylabel("second weight")

    left, right = bottom.subplots(1, 2)
    for name, each in walks.items():
        left.plot(np.maximum(each["heights"], 1e-9), color=COLOURS[name], label=name)
    left.set(yscale="log", title="bowl", xlabel="step", ylabel="height", ylim=(1e-7, None))
    for name, colour in COLOURS.items():
        curves = np.array(networks[name]["curves"])
        # a batch's loss jumps, so a running mean over 15 steps
        window = min(15, curves.shape[1])
        smooth = np.array([np.convolve(curve, np.ones(window) / window, "valid") for curve in curves])
        steps = np.arange(window, curves.shape[1] + 1)
        right.plot(steps, smooth.mean(axis=0), color=colour, label=f"{name} ({networks[name]['lr']:.2g})")
        right.fill_between(steps, smooth.min(axis=0), smooth.max(axis=0), color=colour, alpha=0.08)
    right.set(title="small CNN, built-in images", xlabel="step", ylabel="training loss", ylim=(0.3, 3.5))
    right.legend(fontsize=9, ncol=2, loc="upper right")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    save_small(figure, file)


if __name__ == "__main__":
    main()
