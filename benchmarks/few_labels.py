"""What pretraining is worth by the number of labels: a linear probe and fine-tuning beside supervised training.

    python benchmarks/few_labels.py --weights runs/cifar10-cpu/backbone.safetensors --images cifar10/train \
        --test cifar10/test --runs runs/few_labels --json few_labels.json --picture few_labels.png

For each number of labelled images a class some sets are drawn; every way to use them gets the same sets. ``fine-tuned``
and ``supervised`` train by the recipes and for the steps of the file of rows, without looking at validation images. The
linear probes, of the pretrained and of random weights, choose their penalty by as many validation images as there are
labels. A way with ``head_of`` begins with the head that another way has trained on the same set (LP-FT). The test
images are seen once. A run that is killed goes on, and what the JSON file has is not repeated.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml
from measuring import HERE, add_outputs, check_trained_rows, save_small, write_json

ALL = "all"
CALIBRATED = 5_000  # images
PROBES = {"linear probe": False, "linear probe, random weights": True}


def folder_of(name: str, labels: str, draw: int, args: argparse.Namespace) -> Path:
    """The folder of a run."""
    return args.runs / f"{name.replace(' ', '_')}-{labels}-{draw}"


def command(way: dict[str, Any], labels: str, draw: int, folder: Path, args: argparse.Namespace) -> list[str]:
    """The training of one labelled set."""
    num_classes = sum(each.is_dir() for each in Path(args.images).iterdir())
    few = [] if labels == ALL else ["--data.labels_per_class", labels]
    batch = args.batch_size if labels == ALL else min(args.batch_size, int(labels) * num_classes)
    weights = ["--model.weights", str(args.weights)] if way.get("pretrained") else []
    if "head_of" in way:
        head = folder_of(way["head_of"], labels, draw, args) / "model.safetensors"
        weights += ["--model.head_weights", str(head.resolve())]
    return [
        sys.executable, "-m", "ssl_toolkit", "transfer", "-c", str(HERE.parent / way["recipe"]), "--out", str(folder),
        "--data.path", args.images, "--data.test_path", args.test, "--data.cache", "disk", "--tracker", "none",
        "--trainer.accelerator", "cpu", "--trainer.devices", "1", "--trainer.max_epochs", "-1",
        "--trainer.max_steps", str(way["steps"][labels]), "--trainer.limit_val_batches", "0",
        "--random_weights", "false", "--seed", str(draw), "--data.batch_size", str(batch), *few, *weights,
        *way.get("options", []),
    ]  # fmt: skip


def train(name: str, way: dict[str, Any], labels: str, draw: int, args: argparse.Namespace) -> dict[str, Any]:
    """The figures of one labelled set, trained or gone on with."""
    from ssl_toolkit.tracking.metrics_csv import read_metrics

    run = folder_of(name, labels, draw, args)
    made = [*command(way, labels, draw, run, args), *(["--resume", str(run)] if (run / "config.yaml").exists() else [])]
    start = time.monotonic()
    with (args.runs / f"{run.name}.log").open("a") as log:
        if subprocess.run(made, stdout=log, stderr=log, check=False, cwd=HERE.parent).returncode:
            raise SystemExit(f"{run.name} failed; see {log.name}")
    top1 = next(value for value in reversed(read_metrics(run)["test/top1"]) if value == value)
    shutil.rmtree(run / "checkpoints", ignore_errors=True)
    return {"draw": draw, "top1": top1, "steps": way["steps"][labels], "seconds": round(time.monotonic() - start)}


def probe(is_random: bool, labels: str, draw: int, args: argparse.Namespace) -> dict[str, Any]:
    """A linear probe of the frozen backbone on the labelled set that the trained ways have."""
    from ssl_toolkit.augment import CenterView
    from ssl_toolkit.data import ImageData
    from ssl_toolkit.evaluation import (
        calibrate_batch_norm,
        extract_features,
        few_label_draws,
        linear_probe,
        random_backbone,
    )
    from ssl_toolkit.weights import load_backbone

    size, view = args.image_size, CenterView(args.image_size)
    backbone = load_backbone(args.weights)
    if is_random:
        backbone = random_backbone(backbone, draw)
    start = time.monotonic()
    few, whole = (
        ImageData(
            args.images, test_path=args.test, labels="folder", image_size=size, batch_size=256, cache="disk",
            val_fraction=0.1, seed=draw, labels_per_class=number,
        )
        for number in (None if labels == ALL else int(labels), None)
    )  # fmt: skip
    for data in (few, whole):
        data.prepare_data()
        data.setup()
    if is_random:  # BatchNorm's statistics need no labels, and no more images than this
        some = whole.indices("train")[:: max(1, whole.num_images("train") // CALIBRATED)]
        calibrate_batch_norm(backbone, whole.loader("train", shuffle=True, indices=some), view)
    parts = [extract_features(backbone, few.loader(split), view) for split in ("train", "val", "test")]
    fitted, val, test = [(part.features["pooled"], part.labels) for part in parts]
    if labels != ALL:
        chosen = few_label_draws(val[1], int(labels), 1, draw)[0]
        val = val[0][chosen], val[1][chosen]
    found = linear_probe(fitted, val, test)
    return {"draw": draw, "top1": found.top1, "seconds": round(time.monotonic() - start)}


def draw_curves(file: Path | None, results: dict[str, dict[str, list[dict[str, Any]]]], labels: list[str], num: int):
    """Accuracy by the number of labels, a line for each way; nothing without a file."""
    if not file:
        return
    from matplotlib.figure import Figure

    colours = {"fine-tuned": "#1b6ca8", "linear probe": "#4fa3d9", "supervised": "#c8553d"}
    figure = Figure(figsize=(6.6, 4), layout="constrained")
    axes: Any = figure.subplots()
    places = [num if each == ALL else int(each) for each in labels]
    for name, rows in results.items():
        found = [(place, [100 * row["top1"] for row in rows[each]]) for place, each in zip(places, labels, strict=True)
                 if rows.get(each)]  # fmt: skip
        means = [statistics.mean(values) for _, values in found]
        spread = [[mean - min(values) for mean, (_, values) in zip(means, found, strict=True)],
                  [max(values) - mean for mean, (_, values) in zip(means, found, strict=True)]]  # fmt: skip
        axes.errorbar([place for place, _ in found], means, spread, marker="o", capsize=3, label=name,
                      color=colours.get(name, "#9aa2ad"))  # fmt: skip
    axes.set(xscale="log", xlabel="labelled images of a class", ylabel="top-1 of the test images (%)", ylim=(0, 100))
    axes.set_xticks(places, [f"{place:,}" for place in places], minor=False)
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left")
    save_small(figure, file, dpi=110)


def print_table(results: dict[str, dict[str, list[dict[str, Any]]]], labels: list[str]) -> None:
    print(f"| labelled images of a class | {' | '.join(labels)} |")
    print(f"| --- |{' --- |' * len(labels)}")
    for name, rows in results.items():
        cells = []
        for each in labels:
            values = [100 * row["top1"] for row in rows.get(each, ())]
            among = f" ({min(values):.1f}-{max(values):.1f})" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.1f} %{among}" if values else "")
        print(f"| {name} | {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=Path, default=HERE / "rows" / "few_labels.yaml", help="the ways to train")
    parser.add_argument("--weights", type=Path, help="of the pretrained backbone")
    parser.add_argument("--images", help="a folder of training images, a sub-folder for each class")
    parser.add_argument("--test", help="likewise, of test images")
    parser.add_argument("--image_size", type=int, default=32, help="side in pixels of what the probes see")
    parser.add_argument("--batch_size", type=int, default=128, help="of a step, where there are as many labels")
    parser.add_argument("--labels", nargs="+", default=["1", "10", "100", ALL], help="images of each class")
    parser.add_argument("--runs", type=Path, help="a folder for the runs, from which one goes on")
    add_outputs(parser)
    args = parser.parse_args()
    check_trained_rows(args)
    written = yaml.safe_load(args.rows.read_text(encoding="utf-8"))
    ways = {
        name: {
            **way,
            "steps": {str(labels): steps for labels, steps in way["steps"].items()},
            "options": [*written.get("options", []), *way.get("options", [])],
        }
        for name, way in written["ways"].items()
    }
    for name, way in ways.items():
        if missing := set(args.labels) - set(way["steps"]):
            raise SystemExit(f"{args.rows}: {name} has no steps for {', '.join(sorted(missing))} labels")
        if "head_of" in way and way["head_of"] not in list(ways)[: list(ways).index(name)]:
            raise SystemExit(f"{args.rows}: {name} has head_of: {way['head_of']}, expected a way that stands above it")
    args.runs.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = json.loads(args.json.read_text()) if args.json.exists() else {"ways": ways, "rows": {}}
    if results["ways"] != ways:
        raise SystemExit(f"{args.json} is of other settings; give a new file")
    for labels in args.labels:
        for draw in range(1 if labels == ALL else written["draws"]):
            for name in (*PROBES, *ways):
                rows = results["rows"].setdefault(name, {}).setdefault(labels, [])
                if any(row["draw"] == draw for row in rows):
                    continue
                if name in PROBES:
                    rows.append(probe(PROBES[name], labels, draw, args))
                else:
                    rows.append(train(name, ways[name], labels, draw, args))
                print(f"{labels} labels, draw {draw}: {name}: {100 * rows[-1]['top1']:.1f} %", file=sys.stderr)
                write_json(args.json, results)
    print_table(results["rows"], args.labels)
    num_images = sum(1 for each in Path(args.images).rglob("*") if each.is_file())
    num_classes = sum(each.is_dir() for each in Path(args.images).iterdir())
    draw_curves(args.picture, results["rows"], args.labels, round(0.9 * num_images / num_classes))


if __name__ == "__main__":
    main()
