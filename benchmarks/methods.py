"""Seconds a step, images a second and peak memory of every pretext task, beside SimCLR's.

    python benchmarks/methods.py --json methods.json

The tasks are those of configs/pretrain, one recipe each, found by looking. All train with the same backbone, batch,
precision and size of images, by `ssl-toolkit pretrain` on built-in images that are drawn before the first step; views,
optimizer and all else are the recipe's own. Each measurement is a process with one thread: two steps to warm up, then
the processor time of each step, so that other programs on the machine disturb it little. The methods take turns, and
all of them are measured in each round. Seconds are medians over the rounds of a process's median step, ratios are taken
within a round (median, lowest and highest). Peak memory is that of the whole process, imports and images included, as
Linux counts it (VmHWM). A task that does not take the batch is named and left out (W-MSE takes 65 images or more:
--only simclr w_mse --batch 128).
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from measuring import HERE, Window, add_outputs, draw_bars, median_and_range, window, write_json

RECIPES = HERE.parent / "configs" / "pretrain"
BESIDE = "simclr"


def methods() -> dict[str, Path]:
    """The recipe of each task: the one that is named as the task's module, or else the first."""
    import yaml

    found: dict[str, Path] = {}
    for recipe in sorted(RECIPES.glob("*.yaml")):
        module = yaml.safe_load(recipe.read_text(encoding="utf-8"))["model"]["class_path"].split(".")[1]
        if module not in found or recipe.stem == module:
            found[module] = recipe
    # SimCLR first, what it is compared with
    return dict(sorted(found.items(), key=lambda each: (each[0] != BESIDE, each[0])))


def command(args: argparse.Namespace, recipe: Path, run: Path) -> list[str]:
    """Trains for some steps and prints what they cost."""
    callback = f'{{"class_path": "step_cost.StepCost", "init_args": {{"steps": {args.steps}}}}}'
    return [
        sys.executable, "-m", "ssl_toolkit", "pretrain", "-c", str(recipe), "--out", str(run),
        "--data.source", "procedural", "--data.max_images", str(4 * args.batch), "--data.val_fraction", "0",
        "--data.cache", "memory", "--data.image_size", str(args.image_size), "--data.batch_size", str(args.batch),
        "--model.backbone.name", args.backbone, "--trainer.precision", args.precision,
        "--trainer.accelerator", "cpu", "--trainer.devices", "1", "--trainer.max_epochs", "1000", "--tracker", "none",
        "--evaluation.every_n_epochs", "0", "--watch.every_n_steps", "0", "--trainer.callbacks", f"[{callback}]",
        *args.option,
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--backbone", default="resnet18", help="of all methods, as timm calls it")
    parser.add_argument("--image_size", type=int, default=160, help="side of the images in pixels, before the views")
    parser.add_argument("--batch", type=int, default=32, help="images in a batch")
    parser.add_argument("--precision", default="bf16-mixed", help="as trainer.precision")
    parser.add_argument("--only", nargs="+", help="these tasks alone, by their recipe's name")
    parser.add_argument("--option", action="append", default=[], help="of ssl-toolkit pretrain, as --option=--a=b")
    parser.add_argument("--steps", type=int, default=4, help="that are timed in a process, after two to warm up")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each method")
    add_outputs(parser)
    args = parser.parse_args()
    if not Path("/proc/self/status").exists():
        raise SystemExit("peak memory is read from /proc/self/status, which this system does not have; take Linux")
    found = methods()
    if unknown := set(args.only or ()) - set(found):
        raise SystemExit(f"--only {' '.join(sorted(unknown))}: expected some of {', '.join(found)}")
    os.environ |= {"PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent)]), "OMP_NUM_THREADS": "1"}
    windows: dict[str, list[Window]] = {name: [] for name in found if not args.only or name in args.only}
    for number in range(args.rounds):
        for name, measured in list(windows.items()):
            with tempfile.TemporaryDirectory() as folder:
                made = command(args, found[name], Path(folder) / "run")
                try:
                    measured.append(window(made))
                except SystemExit as failure:
                    print(f"not measured: {name}: {str(failure).splitlines()[-1]}", file=sys.stderr)
                    del windows[name]
                    continue
            seconds, memory = (measured[-1].figures[each] for each in ("seconds", "peak_memory"))
            said = f"round {number + 1}: {name}: {seconds:.2f} s a step, {memory / 2**30:.2f} GiB"
            print(f"{said}, others {measured[-1].others:.2f} cores", file=sys.stderr)
    if not windows:
        raise SystemExit("nothing was measured")
    report(args, windows)


def report(args: argparse.Namespace, windows: dict[str, list[Window]]) -> None:
    """Prints the table as a page has it, writes the file and draws the picture."""
    figures = {
        name: {what: [each.figures[what] for each in measured] for what in ("seconds", "peak_memory")}
        for name, measured in windows.items()
    }
    beside = figures[next(iter(figures))]
    rows: dict[str, dict[str, Any]] = {}
    print(
        f"{args.backbone}, images of {args.image_size} px, batch {args.batch}, {args.precision}, {args.rounds} rounds"
    )
    print("| recipe | seconds a step | images/s | time / the first | GiB | memory / the first | others, cores |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name, each in figures.items():
        ratios = {what: [a / b for a, b in zip(each[what], beside[what], strict=True)] for what in each}
        others = max(window.others for window in windows[name])
        rows[name] = {**each, "ratios": ratios, "others": others}
        seconds, memory = statistics.median(each["seconds"]), statistics.median(each["peak_memory"]) / 2**30
        cells = [f"{seconds:.2f}", f"{args.batch / seconds:.1f}", median_and_range(ratios["seconds"])]
        cells += [f"{memory:.2f}", median_and_range(ratios["peak_memory"]), f"{others:.2f}"]
        print(f"| `{name}` | {' | '.join(cells)} |")
    settings = {name: value for name, value in vars(args).items() if name not in ("json", "picture")}
    write_json(args.json, {"settings": settings, "rows": rows})
    draw_bars(
        args.picture, {"pretext tasks": {name: each["seconds"] for name, each in figures.items()}}, "seconds a step"
    )


if __name__ == "__main__":
    main()
