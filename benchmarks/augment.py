"""SimCLR views a second: `RandomView` beside lightly's transform, kornia and torchvision.

    python benchmarks/augment.py --json augment.json

Two views of each image, from images in memory: 32 px from 32 px with SimCLR's recipe for small images (colour strength
0.5, no blur), 224 px from 256 px with that for large ones (strength 1, blur). lightly works with Pillow images in two
worker processes; kornia on batches of tensors with separate parameters for each sample (its resize is not
antialiased); torchvision v2 on tensors, image by image. All processes live at the same time and take turns; a turn in
which other programs took more than a tenth of a core is repeated. Speeds are medians over the rounds; ratios are taken
within a round, with their range. lightly and kornia have a separate environment.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

from measuring import HERE, Turn, add_outputs, draw_bars, in_turns, lightly_python, median_and_range, write_json

# side of the images and images in a batch, by side of the views
SETTINGS = {32: (32, 256), 224: (256, 32)}
FORMS = ("exact", "fused")


def make_views(form: str, size: int, image_size: int, batch: int) -> None:
    """Makes views for ever, and prints the time after each batch of them."""
    import torch

    from ssl_toolkit.augment import RandomView
    from ssl_toolkit.batch import Images
    from ssl_toolkit.perf.malloc import keep_freed_memory
    from ssl_toolkit.random import fold_in, sample_keys

    keep_freed_memory()  # as the command line does
    strength = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1, "blur": 0.0} if size == 32 else {}
    view = RandomView(size, **strength, form=form)  # pyright: ignore[reportArgumentType] - checked by RandomView
    images = Images(
        torch.randint(0, 256, (batch, 3, image_size, image_size), dtype=torch.uint8),
        torch.full((batch, 2), image_size),
    )
    epoch = 0
    while True:
        view(images, fold_in(sample_keys(0, epoch, torch.arange(batch)), torch.arange(2)[:, None]))
        print(time.monotonic(), flush=True)
        epoch += 1


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", choices=SETTINGS, default=list(SETTINGS), help="of the views")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each process")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each turn")
    parser.add_argument("--tries", type=int, default=3, help="at most, where other programs disturb")
    add_outputs(parser)
    parser.add_argument("--worker", choices=FORMS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        make_views(args.worker, args.sizes[0], *SETTINGS[args.sizes[0]])
        return
    rows = {}
    for size in args.sizes:
        turns = in_turns(commands(size), args.seconds, args.rounds, args.tries, {})
        rows[size] = report(size, turns)
    write_json(args.json, rows)
    groups = {
        f"{size} px": {name: row["views_per_second"] for name, row in group.items()} for size, group in rows.items()
    }
    draw_bars(args.picture, groups, "views a second")


def commands(size: int) -> dict[str, list[str]]:
    """What is measured."""
    image_size, batch = SETTINGS[size]
    script = str(Path(__file__).resolve())
    found = {f"ssl-toolkit, {form}": [sys.executable, script, "--worker", form, "--sizes", str(size)] for form in FORMS}
    options = ["--size", str(size), "--image_size", str(image_size), "--batch", str(batch)]
    if python := lightly_python():
        for name in ("lightly", "kornia", "torchvision"):
            found[name] = [str(python), str(HERE / "peers" / "views.py"), name, *options]
    return found


def report(size: int, turns: dict[str, list[Turn]]) -> dict[str, dict[str, list[float]]]:
    """Prints the table; returns the figures."""
    from rich.console import Console
    from rich.table import Table

    image_size, batch = SETTINGS[size]
    table = Table("", "views/s", "exact form / this", title=f"two views of {size} px, images of {image_size} px")
    rows = {}
    for name, each in turns.items():
        speeds = [turn.steps_per_second * batch * 2 for turn in each]
        exact = turns["ssl-toolkit, exact"]
        ratios = [mine.steps_per_second / turn.steps_per_second for mine, turn in zip(exact, each, strict=True)]
        rows[name] = {"views_per_second": speeds, "ratio": ratios}
        table.add_row(name, f"{statistics.median(speeds):,.0f}", median_and_range(ratios, 1))
    Console().print(table)
    return rows


if __name__ == "__main__":
    main()
