"""Rare classes: what each remedy changes where the largest class has a hundred times the images of the smallest.

    python benchmarks/imbalance.py --weights RUN/backbone.safetensors --images cifar10/train --test cifar10/test \\
        --runs runs/imbalance --json imbalance.json --picture imbalance.png

Each draw chooses which class is how large (sizes fall by a constant factor, as in Cui et al. 2019, arXiv 1901.05555,
section 5.1) and which of its images are taken. The remedies, and no remedy, get the same images, first weights and
steps; no value of theirs is tuned. "as many images, balanced" is what the skew itself costs. The test images are
balanced and seen once, so top-1 is the mean over classes. A run that is killed goes on; a finished one is not repeated.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from measuring import add_outputs, check_trained_rows, save_small, write_json

import ssl_toolkit
from ssl_toolkit.io.atomic import sha256

WAYS: dict[str, dict[str, Any]] = {
    "linear probe": {"recipe": "linear_probe", "options": {"model.cache_features": True}},
    "fine-tuned": {"recipe": "finetune", "options": {"model.augmentation.size": 32}},
}
REMEDIES: dict[str, dict[str, Any]] = {
    "none": {},
    "class weights": {"model.class_weights": 1.0},
    "balanced sampler": {"data.class_balance": 1.0},
    "focal loss": {"model.focal_gamma": 2.0},
    "logit adjustment": {"model.logit_adjustment": 1.0},
}
BALANCED = "as many images, balanced"
SUFFIXES = {".jpg", ".jpeg", ".png"}


def sizes_of_classes(largest: int, num_classes: int, skew: float) -> list[int]:
    """How many images each class has, the largest first: its size divided by `skew` for the last one."""
    return [max(1, round(largest * skew ** -(place / (num_classes - 1)))) for place in range(num_classes)]


def images_by_class(folder: Path) -> dict[str, list[Path]]:
    """The files of each sub-folder, sorted."""
    found = {each.name: sorted(f for f in each.iterdir() if f.suffix.lower() in SUFFIXES) for each in folder.iterdir()
             if each.is_dir()}  # fmt: skip
    return dict(sorted(found.items()))


def write_table(file: Path, root: Path, args: argparse.Namespace, draw: int, balanced: bool) -> list[str]:
    """Writes the images of a draw with their classes and splits; returns the classes, the largest first."""
    train, test = images_by_class(Path(args.images)), images_by_class(Path(args.test))
    if train.keys() != test.keys() or len(train) < 2:
        raise SystemExit(
            f"--images has the classes {', '.join(train)}, --test has {', '.join(test)}; expected the same"
        )
    random = np.random.default_rng(draw)
    order = [list(train)[place] for place in random.permutation(len(train))]
    sizes = sizes_of_classes(min(map(len, train.values())), len(order), args.skew)
    if balanced:
        sizes = [round(sum(sizes) / len(sizes))] * len(sizes)
    rows = []
    for name, size in zip(order, sizes, strict=True):
        chosen = random.permutation(len(train[name]))[:size]
        rows += [(train[name][place], name, "train") for place in chosen]
        rows += [(each, name, "test") for each in test[name]]
    with file.open("w", newline="", encoding="utf-8") as opened:
        writer = csv.writer(opened)
        writer.writerow(["path", "label", "split"])
        writer.writerows([path.resolve().relative_to(root).as_posix(), name, split] for path, name, split in rows)
    return order


def train(way: str, remedy: str, draw: int, args: argparse.Namespace) -> dict[str, Any]:
    """The accuracies of one run, trained or gone on with."""
    root = Path(os.path.commonpath([Path(args.images).resolve(), Path(args.test).resolve()]))
    kind = "balanced" if remedy == BALANCED else "skewed"
    table = args.runs / f"{kind}-{draw}.csv"
    order = write_table(table, root, args, draw, remedy == BALANCED)
    run = args.runs / f"{way}-{remedy}-{draw}".replace(" ", "_").replace(",", "")
    if (run / "config.yaml").exists():
        trained = ssl_toolkit.transfer(resume=run)
    else:
        options = {
            "trainer.accelerator": "cpu", "trainer.max_epochs": -1, "trainer.max_steps": args.steps[way],
            "trainer.limit_val_batches": 0, "tracker": "none", "random_weights": False, "seed": draw,
            **WAYS[way]["options"], **REMEDIES.get(remedy, {}),
        }  # fmt: skip
        data = {"path": str(root), "table": str(table), "image_size": args.image_size, "batch_size": args.batch_size,
                "val_fraction": 0.0, "cache": "memory"}  # fmt: skip
        trained = ssl_toolkit.transfer(WAYS[way]["recipe"], weights=args.weights, data=data, out=run, overrides=options)
    by_class = [trained.figures[f"test/top1_of/{name}"] for name in order]
    return {"draw": draw, "top1": trained.figures["test/top1"], "by_class": [round(each, 4) for each in by_class]}


def third(row: dict[str, Any], place: int) -> float:
    """The mean accuracy of the largest (0), middle (1) or smallest (2) third of the classes."""
    values = row["by_class"]
    return statistics.fmean(np.array_split(values, 3)[place].tolist())


def print_table(results: dict[str, dict[str, list[dict[str, Any]]]]) -> None:
    print("| | remedy | top-1 | largest third | middle third | smallest third |")
    print("| --- | --- | --- | --- | --- | --- |")
    for way, rows in results.items():
        for remedy, found in rows.items():
            whole = [100 * row["top1"] for row in found]
            parts = [100 * statistics.fmean(third(row, place) for row in found) for place in range(3)]
            cells = [
                f"{statistics.fmean(whole):.1f} % ({min(whole):.1f}-{max(whole):.1f})",
                *(f"{p:.1f} %" for p in parts),
            ]
            print(f"| {way} | {remedy} | {' | '.join(cells)} |")


def draw_classes(file: Path | None, results: dict[str, dict[str, list[dict[str, Any]]]]) -> None:
    """The mean accuracy of each class by its size, a line for each remedy; nothing without a file."""
    if not file:
        return
    figure = Figure(figsize=(5 * len(results), 3.6), layout="constrained")
    diagrams: Any = figure.subplots(1, len(results), sharey=True, squeeze=False)[0]
    for axes, (way, rows) in zip(diagrams, results.items(), strict=True):
        for remedy, found in rows.items():
            means = 100 * np.mean([row["by_class"] for row in found], axis=0)
            style = {"none": {"color": "black"}, BALANCED: {"color": "#9aa2ad", "linestyle": "--"}}.get(remedy, {})
            axes.plot(range(1, len(means) + 1), means, marker=".", label=remedy, **style)
        axes.set(title=way, xlabel="class, from the largest to the smallest", ylim=(0, 100))
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("test images recognised (%)")
    figure.axes[0].legend(fontsize="small")
    save_small(figure, file, dpi=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, help="of the pretrained backbone")
    parser.add_argument("--images", help="a folder of training images, a sub-folder for each class")
    parser.add_argument("--test", help="likewise, of test images")
    parser.add_argument("--skew", type=float, default=100.0, help="the largest class by the smallest")
    parser.add_argument("--draws", type=int, default=3, help="of each row: which images, and which class is large")
    parser.add_argument("--image_size", type=int, default=32)
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--probe_steps", type=int, default=2000, help="of a linear probe")
    parser.add_argument("--finetune_steps", type=int, default=500, help="of a fine-tuning")
    parser.add_argument("--runs", type=Path, help="a folder for the runs, from which one goes on")
    add_outputs(parser)
    args = parser.parse_args()
    check_trained_rows(args)
    args.runs.mkdir(parents=True, exist_ok=True)
    args.steps = {"linear probe": args.probe_steps, "fine-tuned": args.finetune_steps}
    facts = {"weights": sha256(args.weights), "steps": args.steps}
    facts |= {name: getattr(args, name) for name in ("skew", "image_size", "batch_size")}
    held = json.loads(args.json.read_text(encoding="utf-8")) if args.json.exists() else {**facts, "results": {}}
    if {name: held[name] for name in facts} != facts:
        raise SystemExit(f"{args.json} is of other weights or settings; give another file")
    results = held["results"]
    for way in WAYS:
        for remedy in (*REMEDIES, BALANCED):
            rows = results.setdefault(way, {}).setdefault(remedy, [])
            for draw in range(len(rows), args.draws):
                rows.append(train(way, remedy, draw, args))
                write_json(args.json, held)
    print_table(results)
    draw_classes(args.picture, results)


if __name__ == "__main__":
    main()
