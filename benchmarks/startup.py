"""Seconds from the command to its answer: the help, and the first training step, beside lightly's own example.

    python benchmarks/startup.py --json startup.json

The images are 1,000 built-in ones as JPEG files of 32 px; a ResNet-18 with small stem, batch 64, float32. Everything
runs once before it is measured, so that bytecode is compiled and our images are in the cache. The processes alternate,
and one that other programs disturbed is repeated. Both packages have separate environments, with what they
require and nothing else (that of a developer holds libraries that others import if they find them).
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
from pathlib import Path

from measuring import HERE, add_outputs, draw_bars, lightly_python, peer_python, undisturbed, write_json

BATCH = 64


def make_images(folder: Path, num: int) -> None:
    """Writes JPEG files in a sub-folder, as lightly wants them."""
    from PIL import Image

    from ssl_toolkit.data.procedural import ProceduralSource

    source = ProceduralSource(num, image_size=32)
    (folder / "all").mkdir(parents=True)
    for index in range(num):
        Image.fromarray(source.read(index)).save(folder / "all" / f"{index:04}.jpg", quality=95)


def commands(images: Path, run: Path) -> dict[str, list[str]]:
    """What is measured."""
    python = peer_python("ssl-toolkit", "--editable", str(HERE.parent))
    if python is None:
        raise SystemExit("an environment for ssl-toolkit could not be made")
    start = [str(python), "-m", "ssl_toolkit"]
    recipe = str(HERE.parent / "configs" / "pretrain" / "simclr_cifar10.yaml")
    train = [*start, "pretrain", "-c", recipe, "--data.path", str(images), "--data.labels", "none", "--out", str(run)]
    train += ["--data.batch_size", str(BATCH), "--trainer.precision", "32-true"]
    train += ["--trainer.callbacks", '[{"class_path": "first_step.FirstStep"}]']
    found = {
        "ssl-toolkit --help": [*start, "--help"],
        "ssl-toolkit report --help": [*start, "report", "--help"],
        "ssl-toolkit evaluate --help": [*start, "evaluate", "--help"],
        "first step": [*train, "--tracker", "none"],
        "first step, with W&B (offline)": train,
    }
    if python := lightly_python():
        script = str(HERE / "peers" / "lightly_example.py")
        for workers in (0, 2):
            options = ["--images", str(images), "--batch", str(BATCH), "--workers", str(workers)]
            found[f"first step, lightly, {workers} workers"] = [str(python), script, *options]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="how often everything is measured, in turns")
    parser.add_argument("--tries", type=int, default=3, help="at most, where other programs disturb")
    add_outputs(parser)
    args = parser.parse_args()

    os.environ |= {"PYTHONPATH": str(HERE), "WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    seconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        images, run = Path(folder) / "images", Path(folder) / "run"
        make_images(images, 1000)
        measured_commands = commands(images, run)
        for number in range(args.rounds + 1):
            for name, command in measured_commands.items():
                measured = undisturbed(command, args.tries if number else 1, before=lambda: shutil.rmtree(run, True))
                if number:
                    seconds.setdefault(name, []).append(measured.figures.get("seconds", measured.seconds))
    report(args, seconds)


def report(args: argparse.Namespace, seconds: dict[str, list[float]]) -> None:
    """Prints the table and writes the file."""
    from rich.console import Console
    from rich.table import Table

    table = Table("", "seconds", "range", "first step / this", title="from the command to its answer")
    for name, each in seconds.items():
        ratios = [ours / this for ours, this in zip(seconds["first step"], each, strict=True)]
        table.add_row(
            name,
            f"{statistics.median(each):.2f}",
            f"{min(each):.2f}-{max(each):.2f}",
            f"{statistics.median(ratios):.2f}" if "lightly" in name else "",
        )
    Console().print(table)
    write_json(args.json, {"seconds": seconds})
    draw_bars(args.picture, {"from the command to its answer": seconds}, "seconds")


if __name__ == "__main__":
    main()
