"""kNN top-1 on a test split against minutes of training: our recipes beside lightly's own SimCLR example.

    python benchmarks/time_to_accuracy.py --images cifar10/train --test cifar10/test --json time_to_accuracy.json \
        --run lightly,32,60 --run lightly,bf16,60 --run ours,20 --run ours,40

One run after the other on the same machine. lightly's example (ResNet-18 with 3x3 stem, batch 256, plain SGD with a
constant rate, which is why it can be looked at any time) is saved `--every` ten minutes; ours is a separate run for
each number of minutes, by `--budget`, because its schedule ends with it. What follows the number of minutes are further
options of `ssl-toolkit pretrain`: `--run "ours,20,--progressive.start 0.5"`.

All backbones are judged in the same way: pooled features, the labelled training images as the bank, k = 20. A run that
the JSON file holds already is not repeated, so a comparison can be made in parts. Runs do not alternate: keep the
machine quiet; `others` is how many cores other programs took. On a machine that has other work, too, `--rate` makes
lightly's run as many images long as its minutes hold at that rate: what it has learned then does not depend on how long
it took.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from measuring import HERE, add_outputs, lightly_python, window, write_json


class Run(NamedTuple):
    """A run to be made; see the module's text."""

    name: str
    who: str
    precision: str
    minutes: float
    options: list[str]


def parse_run(text: str) -> Run:
    """Reads ``lightly,PRECISION,MINUTES`` or ``ours,MINUTES[,OPTIONS]``."""
    try:
        who, *rest = text.split(",", 2)
        if who == "lightly":
            precision, minutes = rest
            return Run(text, who, {"32": "32", "bf16": "bf16"}[precision], float(minutes), [])
        minutes, *options = rest
        return Run(text, {"ours": "ours"}[who], "", float(minutes), shlex.split("".join(options)))
    except (KeyError, ValueError):
        expected = "lightly,32,MINUTES or lightly,bf16,MINUTES or ours,MINUTES[,OPTIONS]"
        raise argparse.ArgumentTypeError(f"{text!r} is no run; expected {expected}") from None


def make(run: Run, args: argparse.Namespace) -> list[dict[str, float]]:
    """Trains, and returns the points of the curve."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if run.who == "ours":
            command = [sys.executable, "-m", "ssl_toolkit", "pretrain", "-c", str(args.recipe)]
            command += ["--data.path", args.images, "--out", str(folder / "run"), "--budget", f"{run.minutes}min"]
            command += ["--tracker", "none", "--evaluation.every_n_epochs", "0", "--data.val_fraction", "0"]
            measured = window([*command, *run.options])
            weights = {measured.seconds / 60: folder / "run" / "backbone.safetensors"}
        else:
            python = lightly_python()
            if python is None:
                return []
            num = math.ceil(run.minutes / args.every)
            marks = [f"{mark:g}" for mark in [*(args.every * each for each in range(1, num)), run.minutes]]
            script = str(HERE / "peers" / "lightly_example.py")
            by_images = ["--rate", str(args.rate)] if args.rate else []
            command = [str(python), script, "--images", args.images, "--precision", run.precision]
            measured = window(
                [*command, "--workers", str(args.workers), "--folder", name, *by_images, "--minutes", *marks]
            )
            weights = {float(mark): folder / f"{mark}.pt" for mark in marks}
        return [
            {"minutes": minutes, "knn": knn(file, args), "others": measured.others} for minutes, file in weights.items()
        ]


def knn(weights: Path, args: argparse.Namespace) -> float:
    """The accuracy on the test images."""
    import torch

    from ssl_toolkit.augment import CenterView
    from ssl_toolkit.data import ImageData
    from ssl_toolkit.evaluation import knn_accuracy
    from ssl_toolkit.evaluation.features import extract_features
    from ssl_toolkit.modules.backbone import Backbone
    from ssl_toolkit.weights import load_backbone

    if weights.suffix == ".pt":
        backbone = Backbone("resnet18", stem="small")
        backbone.model.load_state_dict(torch.load(weights, weights_only=True))
    else:
        backbone = load_backbone(weights)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    data = ImageData(args.images, test_path=args.test, labels="folder", image_size=32, val_fraction=0.0)
    data.setup()
    parts = [extract_features(backbone.to(device), data.loader(split), CenterView(32)) for split in ("train", "test")]
    bank, test = ((part.features["pooled"], part.labels) for part in parts)
    return knn_accuracy(*bank, *test, k=[20])[20]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", help="a folder of training images, a sub-folder for each class")
    parser.add_argument("--test", help="likewise, of test images")
    recipe = HERE.parent / "configs" / "pretrain" / "simclr_cifar10.yaml"
    parser.add_argument("--recipe", type=Path, default=recipe, help="of our runs")
    parser.add_argument("--run", type=parse_run, action="append", default=[], help="a run; may be given several times")
    parser.add_argument("--workers", type=int, default=2, help="of lightly's loader (the example has 8)")
    parser.add_argument("--rate", type=float, help="images a second that lightly trains on a quiet machine (see above)")
    parser.add_argument("--every", type=float, default=10, help="minutes between two measurements of lightly's run")
    add_outputs(parser)
    args = parser.parse_args()
    for name in ("images", "test"):
        folder = getattr(args, name)
        if not folder or not Path(folder).is_dir():
            raise SystemExit(f"--{name} {folder} is not a folder; give one of images, for instance CIFAR-10's")
        setattr(args, name, str(Path(folder).resolve()))

    curves: dict[str, list[dict[str, float]]] = {}
    if args.json and args.json.exists():
        curves = json.loads(args.json.read_text(encoding="utf-8"))
    for run in args.run:
        if run.name not in curves and (points := make(run, args)):
            curves[run.name] = points
            write_json(args.json, curves)
    report(curves)
    if args.picture:
        draw(curves, args.picture)


def report(curves: dict[str, list[dict[str, float]]]) -> None:
    """Prints the table."""
    from rich.console import Console
    from rich.table import Table

    table = Table("run", "minutes", "kNN top-1", "others' cores", title="kNN top-1 against minutes of training")
    for name, points in curves.items():
        for point in points:
            cells = f"{point['minutes']:.1f}", f"{100 * point['knn']:.1f} %", f"{point['others']:.2f}"
            table.add_row(name, *cells)
    Console().print(table)


def draw(curves: dict[str, list[dict[str, float]]], file: Path) -> None:
    """Draws a curve for each of lightly's runs and a point for each of ours."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes: Any = figure.subplots()
    for name, points in curves.items():
        minutes, top1 = [each["minutes"] for each in points], [100 * each["knn"] for each in points]
        axes.plot(minutes, top1, marker="o", label=name)
    axes.set(xlabel="minutes of training", ylabel="kNN top-1, %", xlim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(file, dpi=150)


if __name__ == "__main__":
    main()
