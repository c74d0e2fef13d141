"""The gap between training and validation accuracy of a small CNN on few labels, with each regularizer and with all.

    python benchmarks/regularization_gap.py --images cifar10/train --test cifar10/test --json regularization_gap.json \
        --picture docs/pictures/regularization_gap.png

A narrow ResNet-10 is trained from random weights by `ssl-toolkit transfer` itself: with none, with one at a time, and
with all of the recommended set - weight decay, dropout, label smoothing, flips and crops, early stopping. Training and
validation images are measured in the same way, without augmentation and dropout, with the weights that the run ends
with. As many images as have labels are for validation; without --test as many again are for the test. A run that the
JSON file holds already is not repeated, so that it can be made in parts.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from measuring import HERE, add_outputs, save_small, write_json

NONE, ALL = "none", "all together"
REGULARIZERS: dict[str, dict[str, Any]] = {
    "weight decay": {"model.optimizer.weight_decay": 0.3},
    "dropout": {"model.dropout": 0.5},
    "label smoothing": {"model.regularizers": [{"class_path": "LabelSmoothing", "init_args": {"share": 0.1}}]},
    "flips and crops": {
        "model.augmentation": "RandomView",
        "model.augmentation.size": 32,
        "model.augmentation.scale": [0.4, 1.0],
        "model.augmentation.jitter_prob": 0.0,
        "model.augmentation.grayscale": 0.0,
        "model.augmentation.blur": 0.0,
    },
    "early stopping": {"early_stopping.patience": 5},
}
BASE = {
    "model": "downstream.classification.Classification",
    "model.backbone.name": "resnet10t",
    "model.backbone.stem": "small",
    "model.backbone.kwargs": {"stem_width": 16, "channels": [16, 32, 64, 128]},
    "model.optimizer": "AdamW",
    "model.optimizer.lr": 0.002,
    "model.optimizer.weight_decay": 0.0,
    "model.schedule": "Cosine",
    "model.schedule.warmup_percent": 5,
    "data.image_size": 32,
    "data.batch_size": 64,
    "data.cache": "memory",
    "trainer.check_val_every_n_epoch": 2,
    "trainer.callbacks": [{"class_path": "train_and_val.Accuracies"}],
    "checkpoint.every_minutes": 1000,
    "tracker": "none",
}


def option_list(settings: Mapping[str, Any]) -> list[str]:
    """A command line."""
    words = []
    for name, value in settings.items():
        words += [f"--{name}", value if isinstance(value, str) else json.dumps(value)]
    return words


def data_options(args: argparse.Namespace) -> dict[str, Any]:
    """Where the images are, and how they are divided."""
    parts = 2 if args.test else 3
    settings: dict[str, Any] = {"data.max_images": parts * args.labels, "data.val_fraction": 1 / parts}
    settings["data.test_fraction"] = 0.0 if args.test else 1 / parts
    if args.images == "builtin":
        return {"data.source": "procedural", **settings}
    return {"data.path": args.images, **({"data.test_path": args.test} if args.test else {}), **settings}


def train_one(name: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """One run: its curves, its accuracies in the end, and the seconds it took."""
    from train_and_val import FILE

    from ssl_toolkit.cli.train import train

    chosen = {NONE: [], ALL: list(REGULARIZERS)}.get(name, [name])
    settings = {**BASE, **data_options(args), "trainer.max_epochs": args.epochs, "trainer.precision": args.precision}
    for each in chosen:
        settings |= REGULARIZERS[each]
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        options = [*option_list(settings), "--seed", str(seed), "--out", f"{folder}/run"]
        run = train("transfer", options, quietly=True)
        measured = json.loads((run / FILE).read_text(encoding="utf-8"))
    return {**measured, "seconds": time.perf_counter() - start}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", default="builtin", help="a folder with a sub-folder for each class, or builtin")
    parser.add_argument("--test", help="likewise, of test images")
    parser.add_argument("--labels", type=int, default=2000, help="images that are trained with")
    parser.add_argument("--seeds", type=int, default=3, help="seeds: 0, 1, ...")
    parser.add_argument("--epochs", type=int, default=24, help="of each run")
    parser.add_argument("--precision", default="bf16-mixed", help="as trainer.precision")
    parser.add_argument("--only", nargs="+", choices=[NONE, *REGULARIZERS, ALL], help="these rows and no others")
    add_outputs(parser)
    args = parser.parse_args()
    for name in ("images", "test"):
        folder = getattr(args, name)
        if folder and (name, folder) != ("images", "builtin"):
            if not Path(folder).is_dir():
                raise SystemExit(f"--{name} {folder} is not a folder; give one with a sub-folder for each class")
            setattr(args, name, str(Path(folder).resolve()))
    runs: dict[str, Any] = {}
    if args.json and args.json.exists():
        runs = json.loads(args.json.read_text(encoding="utf-8"))
    names = args.only or [NONE, *REGULARIZERS, ALL]
    for seed in range(args.seeds):
        for name in names:
            key = f"{name}, seed {seed}"
            if key not in runs:
                runs[key] = train_one(name, seed, args)
                print(f"{key}: {runs[key]['final']}, {runs[key]['seconds']:.0f} s", file=sys.stderr)
                write_json(args.json, runs)
    rows = {name: [runs[f"{name}, seed {seed}"] for seed in range(args.seeds)] for name in names}
    report(rows)
    if args.picture:
        draw(args.picture, rows)


def mean_and_spread(values: Sequence[float]) -> str:
    """A table's cell, in percent."""
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{100 * statistics.mean(values):.1f} ± {100 * spread:.1f}"


def report(rows: Mapping[str, list[dict[str, Any]]]) -> None:
    """Prints the table, as the page has it."""
    print("| regularizers | train, % | validation, % | gap, points | test, % | seconds a run |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, runs in rows.items():
        finals = [run["final"] for run in runs]
        cells = [[final[split] for final in finals] for split in ("train", "val", "test")]
        gaps = [final["train"] - final["val"] for final in finals]
        train, val, gap, test = map(mean_and_spread, [*cells[:2], gaps, cells[2]])
        print(f"| {name} | {train} | {val} | {gap} | {test} | {statistics.mean(run['seconds'] for run in runs):.0f} |")


def draw(file: Path, rows: Mapping[str, list[dict[str, Any]]]) -> None:
    """Draws a diagram for each row: training and validation accuracy of each seed against epochs."""
    from matplotlib.figure import Figure

    width = min(4, len(rows))
    height = -(-len(rows) // width)
    figure = Figure(figsize=(3 * width, 2.6 * height), layout="constrained")
    diagrams: Any = figure.subplots(height, width, sharex=True, sharey=True, squeeze=False)
    for axes in diagrams.flat[len(rows) :]:
        axes.set_visible(False)
    for axes, (name, runs) in zip(diagrams.flat, rows.items(), strict=False):
        for split, colour in (("train", "#9aa3b2"), ("val", "#4c72b0")):
            for number, run in enumerate(runs):
                epochs, fractions = [[point[key] for point in run["curve"]] for key in ("epoch", split)]
                label = {"train": "training", "val": "validation"}[split] if number == 0 else None
                axes.plot(epochs, [100 * fraction for fraction in fractions], color=colour, linewidth=1.2, label=label)
        axes.set_title(name, fontsize=10)
        axes.grid(alpha=0.3)
    diagrams.flat[0].legend(fontsize=8, loc="lower right")
    for axes in diagrams[:, 0]:
        axes.set_ylabel("accuracy, %")
    for column in range(width):
        last = [row for row in range(height) if row * width + column < len(rows)][-1]
        diagrams[last, column].set_xlabel("epoch")
        diagrams[last, column].tick_params(labelbottom=True)
    save_small(figure, file)


if __name__ == "__main__":
    sys.path.append(str(HERE))
    main()
