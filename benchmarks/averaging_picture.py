"""Draws what averaging does: the validation loss of raw and averaged weights, and bagging by the number of members.

    python benchmarks/averaging_picture.py --picture docs/pictures/averaging.png

Three runs of the same training on built-in images differ in the average alone. Then linear classifiers of the features
of the first are bagged, fitted to half of the validation images and measured on the other half. About two minutes on
one core.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

import torch
import yaml
from measuring import add_outputs, write_json

from ssl_toolkit.augment import CenterView
from ssl_toolkit.cli.train import train
from ssl_toolkit.data import ImageData
from ssl_toolkit.evaluation import bagging, extract_features
from ssl_toolkit.tracking.metrics_csv import read_metrics
from ssl_toolkit.weights import load_backbone

EPOCHS = 10
MEMBERS = (1, 2, 4, 8, 16, 32)
SEEDS = 6
DATA = {"source": "procedural", "image_size": 24, "batch_size": 32, "cache": "memory", "val_fraction": 0.3}
BACKBONE = {"name": "resnet10t", "stem": "small", "kwargs": {"stem_width": 16, "channels": [16, 16, 32, 32]}}
RECIPE = {
    "model": {
        "class_path": "downstream.classification.Classification",
        "init_args": {
            "backbone": BACKBONE,
            "optimizer": {"class_path": "ssl_toolkit.optim.SGD", "init_args": {"lr": 0.1, "momentum": 0.9}},
            "schedule": {"class_path": "ssl_toolkit.schedule.Constant"},
        },
    },
    "data": {**DATA, "labels": "folder", "max_images": 900, "test_fraction": 0.0},
    "trainer": {"max_epochs": EPOCHS, "accelerator": "cpu"},
    "tracker": "none",
}
AVERAGES = {
    "the weights themselves": {"kind": "none"},
    "EMA, decay 0.95": {"kind": "ema", "decay": 0.95},
    "SWA from half of the run": {"kind": "swa", "start": 0.5},
}


def trained(average: dict, folder: Path) -> list[float]:
    """Trains in a folder; the validation loss of each epoch."""
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({**RECIPE, "average": average}))
    run = train("transfer", ["-c", str(recipe), "--out", str(folder / "run")], quietly=True)
    return [loss for loss in read_metrics(run)["val/loss"] if loss == loss]


def bags(weights: Path) -> list[tuple[float, float]]:
    """Mean accuracy and its standard deviation over seeds, for each number of members."""
    data = ImageData(**RECIPE["data"])
    data.setup()
    # images that the network was not trained on: every other one is labelled, the rest are the test
    found = extract_features(load_backbone(weights), data.loader("val"), CenterView(24), precision="32")
    features, labels = found.features["pooled"], found.labels
    parts = [(features[start::2], labels[start::2]) for start in (0, 1)]
    test_features, test_labels = parts[1]
    # a member does not depend on how many there are: the smaller bags are the beginnings of the largest
    largest = [bagging(*parts, strength=1e-3, num_members=MEMBERS[-1], seed=seed).members for seed in range(SEEDS)]
    said = [torch.stack([member(test_features).softmax(dim=1) for member in members]) for members in largest]
    figures = []
    for num in MEMBERS:
        right = [each[:num].mean(dim=0).argmax(dim=1) == test_labels for each in said]
        top1 = [float(each.double().mean()) for each in right]
        figures.append((statistics.mean(top1), statistics.stdev(top1)))
        print(f"{num:2} members: {100 * figures[-1][0]:.1f} % ± {100 * figures[-1][1]:.1f}")
    print(f"one linear probe of all: {100 * bagging(*parts, strength=1e-3, num_members=1, resample=False).top1:.1f} %")
    return figures


def main() -> None:
    """Trains, measures, and draws."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_outputs(parser)
    args = parser.parse_args()
    losses: dict[str, list[float]] = {}
    figures: list[tuple[float, float]] = []
    for name, average in AVERAGES.items():
        with tempfile.TemporaryDirectory() as folder:
            losses[name] = values = trained(average, Path(folder))
            figures = bags(Path(folder) / "run" / "backbone.safetensors") if average["kind"] == "none" else figures
        print(f"{name}: {', '.join(f'{value:.2f}' for value in values)}")
    write_json(args.json, {"validation loss": losses, "bagging": dict(zip(map(str, MEMBERS), figures, strict=True))})
    if args.picture:
        draw(losses, figures, args.picture)


def draw(losses: dict[str, list[float]], figures: list[tuple[float, float]], file: Path) -> None:
    """The curves, and the accuracy by the number of members."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, values in losses.items():
        left.plot(range(1, len(values) + 1), values, marker="o", markersize=3, label=name)
    left.set(xlabel="epoch", ylabel="validation loss", yscale="log")
    left.legend(fontsize=8)
    means, stds = ([100 * each for each in column] for column in zip(*figures, strict=True))
    right.errorbar(MEMBERS, means, yerr=stds, marker="o", capsize=3)
    right.set(xlabel="bagged members", ylabel="test top-1 in %", xscale="log", xticks=MEMBERS)
    right.set_xticks(MEMBERS, [str(each) for each in MEMBERS])
    right.minorticks_off()
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
    figure.savefig(file, dpi=110)


if __name__ == "__main__":
    main()
