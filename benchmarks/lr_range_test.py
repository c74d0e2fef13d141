"""How good the suggestions of ``lr-find`` are: range tests beside short runs at every rate, on several tasks.

    python benchmarks/lr_range_test.py --small CIFAR --photographs PHOTOGRAPHS --json rates.json

Each pair of task and data gets a range test of its own, and runs of some hundred steps at rates a factor of about 3
apart. A rate is as good as its run: the part of the greatest fall of the loss that it reaches.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from measuring import add_outputs, write_json

from ssl_toolkit.cli.lr_find import lr_find
from ssl_toolkit.cli.train import train
from ssl_toolkit.errors import RunFailed
from ssl_toolkit.tracking.metrics_csv import read_metrics

CONFIGS = Path(__file__).parents[1] / "configs"
RATES = [1e-4 * 10 ** (step / 2) for step in range(-1, 9)]
SMALL_NETWORK = (
    "--model.backbone.name resnet10t --model.backbone.kwargs.stem_width 16 "
    "--model.backbone.kwargs.channels [16,32,64,128]"
)
BUILT_IN = "--data.source procedural --data.path null --data.max_images 4000"
SCRATCH = "transfer/finetune.yaml --model.layer_decay 1 --model.head_lr_factor 1 --data.val_fraction 0"
TWO_CROPS = "pretrain/simclr.yaml --data.batch_size 128 --data.image_size {size} --model.view.size {size} "
BY_SGD = "--model.optimizer ssl_toolkit.optim.SGD --model.optimizer.lr 0.1"
# the recipe below configs/, whose folder is the command, and what differs from it
PAIRS = {
    "classification, AdamW, built-in": f"{SCRATCH} {BUILT_IN} --data.image_size 32 --model.augmentation.size 32",
    "classification, SGD, built-in": (
        f"{SCRATCH} {BUILT_IN} --data.image_size 32 --model.augmentation.size 32 {BY_SGD}"
    ),
    "SimCLR, AdamW, built-in": f"{TWO_CROPS.format(size=32)} {BUILT_IN}",
    "classification, SGD, small": "transfer/supervised_cifar10.yaml --data.path SMALL --model.backbone.stem small",
    "Barlow Twins, AdamW, small": (
        "pretrain/barlow_twins.yaml --data.path SMALL --data.image_size 32 --data.batch_size 128 "
        "--model.views.first.size 32 --model.views.second.size 32 --model.projector_widths [256,256]"
    ),
    "patch position, AdamW, photographs": (
        "pretrain/patch_position.yaml --data.path PHOTOGRAPHS"
    ),
}  # fmt: skip


def command(pair: str, args: argparse.Namespace) -> tuple[str, list[str]]:
    """The command of a pair, and its arguments."""
    recipe, *options = f"{PAIRS[pair]} {SMALL_NETWORK}".split()
    places = {"SMALL": str(args.small), "PHOTOGRAPHS": str(args.photographs)}
    options = [places.get(option, option) for option in options]
    common = ["--tracker", "none", "--data.cache", "disk", "--data.cache_dir", str(args.cache)]
    return recipe.partition("/")[0], ["-c", str(CONFIGS / recipe), *options, *common]


def range_test(pair: str, args: argparse.Namespace, seed: int, folder: Path) -> dict[str, Any]:
    """What ``lr-find`` found."""
    side, options = command(pair, args)
    steps = [] if args.test_steps is None else ["--steps", str(args.test_steps)]
    with contextlib.redirect_stdout(io.StringIO()):
        lr_find([side, *options, *steps, "--seed", str(seed), "--out", str(folder)])
    return json.loads((folder / "lr_find.json").read_text())


def run(pair: str, args: argparse.Namespace, rate: float, folder: Path) -> float:
    """The training loss of the last fifth of a run; infinite if it is not finite."""
    side, options = command(pair, args)
    own = ["--model.lr_scaling", "none", "--model.optimizer.lr", f"{rate:g}", "--trainer.max_steps", str(args.steps)]
    own += ["--trainer.max_epochs", "-1", "--trainer.log_every_n_steps", "5", "--out", str(folder)]
    own += ["--trainer.limit_test_batches", "0"] if side == "transfer" else []
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            train(side, [*options, *own], quietly=True)
    except RunFailed:
        return math.inf
    losses = [loss for loss in read_metrics(folder)["train/loss"] if not math.isnan(loss)]
    return float(np.mean(losses[-max(1, len(losses) // 5) :]))


def share_reached(losses: dict[float, float], start: float, rate: float) -> float:
    """The part of the greatest fall of the loss that a rate reaches, interpolated over the logarithm of the rate.

    Args:
        losses: Of the runs, by their rates.
        start: Before the first step.
        rate: May lie between two of them.
    """
    best = min(losses.values())
    if best >= start:
        return math.nan  # no run learned
    shares = [(start - min(loss, start)) / (start - best) for loss in losses.values()]
    return float(np.interp(math.log(rate), np.log(list(losses)), shares))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--small", type=Path, help="folder of small images in class folders (CIFAR-10)")
    parser.add_argument("--photographs", type=Path, help="folder of photographs in class folders (Caltech-101)")
    parser.add_argument("--rates", type=float, nargs="*", default=RATES, help="of the runs")
    parser.add_argument("--steps", type=int, default=200, help="of each run")
    parser.add_argument("--seeds", type=int, default=3, help="how many range tests of each pair")
    parser.add_argument("--test_steps", type=int, help="of the range test; by default its own choice")
    parser.add_argument("--only", nargs="*", default=list(PAIRS), help="names of pairs")
    parser.add_argument("--cache", type=Path, default=Path("~/.cache/ssl-toolkit"), help="of decoded images")
    add_outputs(parser)
    args = parser.parse_args()
    for place in (args.small, args.photographs):
        if place is not None and not place.is_dir():
            parser.error(f"there is no folder {place}")
    found = {}
    for pair in args.only:
        if ("SMALL" in PAIRS[pair] and not args.small) or ("PHOTOGRAPHS" in PAIRS[pair] and not args.photographs):
            print(f"{pair}: left out, its images are not given")
            continue
        started = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            tests = [range_test(pair, args, seed, Path(folder) / f"test{seed}") for seed in range(args.seeds)]
            losses = {rate: run(pair, args, rate, Path(folder) / f"{rate:g}") for rate in args.rates}
        found[pair] = {"tests": tests, "losses": losses}
        best = min(losses, key=lambda rate: losses[rate])
        print(f"{pair} ({time.monotonic() - started:.0f} s): best {best:.2g}")
        print("  " + ", ".join(f"{rate:.1g}: {loss:.3f}" for rate, loss in losses.items()), flush=True)
        for test in tests:
            shares = [
                f"{name} {rate:g}: {share_reached(losses, test['start'], rate):.0%} of the fall"
                for name, rate in test["candidates"].items()
            ]
            print(f"  suggestion {test['suggestion']}; {', '.join(shares)}", flush=True)
        write_json(args.json, found)


if __name__ == "__main__":
    main()
