"""The command ``lr-find``: a learning rate range test."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ssl_toolkit.cli.command_line import CommandLine
from ssl_toolkit.cli.parser import parse
from ssl_toolkit.cli.prepare import prepare
from ssl_toolkit.cli.recipes import SIDES
from ssl_toolkit.cli.run_context import one_line_errors, quiet
from ssl_toolkit.cli.training_parser import training_parser
from ssl_toolkit.distributed.ranks import is_rank_zero
from ssl_toolkit.errors import nearest
from ssl_toolkit.io.atomic import write_atomically
from ssl_toolkit.report.drawing import COLOURS, FONT_SIZE, new_figure
from ssl_toolkit.runtime.fsdp import NAME as SHARDED
from ssl_toolkit.tuning.lr_range_test import RangeTest, check_range, range_test

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RULES = {
    "steepest": "where the loss falls fastest",
    "lowest": "where it is lowest before it first rises",
}
# measured on six pairs of task and data (docs/learning_rate.md)
RECOMMENDED = "lowest"
ENDS = {
    "rise": "where the loss had risen to four times its best",
    "not finite": "where it was no longer finite",
    "highest": "as asked for",
}


def lr_find(arguments: Sequence[str]) -> None:
    """Makes a range test and says which rate it suggests."""
    side, rest = (arguments[0], arguments[1:]) if arguments else ("", [])
    if side in ("-h", "--help"):
        side, rest = SIDES[0], ["--help"]
    if side not in SIDES:
        given = f", got {side!r}{nearest(side, SIDES)}" if side else ""
        raise ValueError(f"lr-find needs to know for which command: ssl-toolkit lr-find pretrain|transfer ...{given}")
    line = CommandLine(side, rest)
    parser = training_parser(line)
    parser.prog = "ssl-toolkit lr-find " + (side if "--help" not in rest else "pretrain|transfer")
    parser.description = "Looks for the learning rate of a recipe. Give the recipe and the options of the run itself."
    parser._option_string_actions["--out"].help = "Folder for a picture and the figures (none are kept)."
    parser.add_argument("--lowest", type=float, default=1e-6, help="The rate to begin with.")
    parser.add_argument("--highest", type=float, default=10.0, help="The rate to end with, if the loss bears it.")
    help_of_steps = "How many steps; by default 100, or if they are slow as many as a minute has, but 40 at least."
    parser.add_argument("--steps", type=int | None, default=None, help=help_of_steps)
    config = parse(parser, line.arguments)
    for option in ("resume", "budget", "speed"):
        if config[option] is not None:
            raise ValueError(f"lr-find takes no --{option}: it is a trial before a run; leave it out")
    if config.trainer.strategy == SHARDED:
        raise ValueError(f"lr-find does not work with trainer.strategy {SHARDED}: add --trainer.strategy ddp")
    check_range(config.lowest, config.highest, config.steps)
    out = None if config.out is None else Path(config.out)
    if out is not None and out.is_file():
        raise ValueError(f"--out {out} is a file, expected a folder for the picture and the figures")

    objects = prepare(parser, config)
    with quiet(), one_line_errors():
        found = range_test(
            objects.model, objects.data, vars(objects.trainer), config.lowest, config.highest, config.steps
        )
    if not is_rank_zero():
        return
    what = f"{type(objects.model).__name__} with {type(objects.model.optimizer_spec).__name__}"
    for line in answer(found, what, objects.model.reference_batch_size):
        print(line)
    if out is not None:
        save(found, out, what)
        print(f"picture: {out / 'lr_find.png'}")


def answer(found: RangeTest, what: str, reference: int) -> list[str]:
    """The lines that are shown.

    Args:
        found: The range test.
        what: What was trained.
        reference: The recipe's ``reference_batch_size``.
    """
    curve, num = found.curve, len(found.curve.rates)
    lines = [
        f"lr-find: {what}, batch {found.batch_size:,}: {num} steps at rates from {curve.rates[0]:.3g} to "
        f"{curve.rates[-1]:.3g}, {ENDS[curve.end]}, {found.seconds:.0f} s"
    ]
    if found.slow:
        lines.append("a step is slow here, so there were fewer than 100: --steps 100 makes a finer curve")
    if curve.problem:
        return [*lines, f"no suggestion: {curve.problem}"]
    lines += [f"  {rate:<9.3g}{RULES[name]}" for name, rate in found.candidates.items()]
    rate = found.candidates[RECOMMENDED]
    batch = f"a batch of {found.batch_size:,}"
    if found.factor != 1:
        batch = f"reference_batch_size {reference:,}; lr_scaling makes it {rate * found.factor:.2g} for {batch}"
    return [*lines, f"suggestion, {RULES[RECOMMENDED]}, for {batch}:", f"  --model.optimizer.lr {rate:g}"]


def save(found: RangeTest, folder: Path, what: str) -> None:
    """Writes ``lr_find.json`` and ``lr_find.png``.

    Args:
        found: The range test.
        folder: Where; made if it is not there.
        what: What was trained.
    """
    curve = found.curve
    figures = {
        "what": what, "batch_size": found.batch_size, "lr_scaling_factor": found.factor, "candidates": found.candidates,
        "suggestion": None if curve.problem else found.candidates[RECOMMENDED], "problem": curve.problem,
        "end": curve.end, "start": curve.start, "seconds": round(found.seconds, 1), "rates": curve.rates.tolist(),
        "losses": curve.losses.tolist(), "smoothed": curve.smoothed.tolist(),
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "lr_find.json", json.dumps(figures, indent=2))
    picture = io.BytesIO()
    draw(found, what).savefig(picture, format="png", dpi=130)
    write_atomically(folder / "lr_find.png", picture.getvalue())


def draw(found: RangeTest, what: str) -> Figure:
    """The loss over the rate, with the rates that the rules give."""
    curve = found.curve
    figure, axes = new_figure(6.0, 3.2)
    axes.plot(curve.rates, curve.losses, ".", color=COLOURS[-1], markersize=3, alpha=0.7, label="batches")
    axes.plot(curve.rates, curve.smoothed, color=COLOURS[0], linewidth=1.6, label="smoothed")
    if not curve.problem:
        for (name, rate), colour in zip(found.candidates.items(), COLOURS[1:], strict=False):
            label = f"{rate * found.factor:.2g}: {RULES[name]}"
            axes.axvline(rate * found.factor, color=colour, linewidth=1.2, linestyle="--", label=label)
    low, start = float(curve.smoothed.min()), curve.start
    room = 0.15 * (start - low) or 0.1 * abs(start) or 1.0
    axes.set(xscale="log", ylim=(low - room, start + 2 * room))
    axes.set_xlabel("learning rate", fontsize=FONT_SIZE)
    axes.set_ylabel("training loss", fontsize=FONT_SIZE)
    axes.set_title(f"{what}, batch {found.batch_size:,}", fontsize=FONT_SIZE + 1, loc="left")
    axes.legend(frameon=False, fontsize=FONT_SIZE)
    return figure
