"""The command ``diagnose``: checks of a recipe before its run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from ssl_toolkit.cli.command_line import CommandLine, read_options
from ssl_toolkit.cli.parser import parse
from ssl_toolkit.cli.prepare import prepare
from ssl_toolkit.cli.run_context import one_line_errors, quiet
from ssl_toolkit.cli.training_parser import training_parser
from ssl_toolkit.errors import nearest
from ssl_toolkit.health.diagnose import FIGURES, PICTURE, Diagnosis
from ssl_toolkit.health.diagnose import diagnose as examine
from ssl_toolkit.run_folder import CONFIG

COMMANDS = ("pretrain", "transfer")


def diagnose(arguments: Sequence[str]) -> Diagnosis:
    """Checks a recipe before its run, prints what was found, and with ``--out FOLDER`` writes a picture and figures.

    Args:
        arguments: What follows the command: the training command, then its own arguments.

    Raises:
        ValueError: For whatever the user can mend, in one line.
    """
    from rich.console import Console

    if not arguments or arguments[0] not in COMMANDS:
        given = repr(arguments[0]) if arguments else "nothing"
        hint = nearest(arguments[0], COMMANDS) if arguments else ""
        raise ValueError(f"diagnose needs pretrain or transfer and what that takes (-c RECIPE ...), got {given}{hint}")
    command, *rest = arguments
    for option in ("--resume", "--budget", "--speed"):
        if option in dict(read_options(rest)):
            raise ValueError(f"{option} is for a run; diagnose looks at a recipe before its run: leave it out")
    line = CommandLine(command, rest)
    parser = training_parser(line)
    config = parse(parser, line.arguments)
    out = None if config.out is None else Path(config.out)
    if out is not None and (out / CONFIG).exists():
        raise ValueError(f"--out {out} holds a run, which diagnose leaves alone; give another folder")
    with torch.random.fork_rng():
        objects = prepare(parser, config)
        if getattr(objects.model, "trains_nothing", False):
            raise ValueError("diagnose looks at a training, but this head has nothing to train: run transfer")
        with quiet(), one_line_errors():
            diagnosis = examine(objects.model, objects.data, vars(objects.trainer))
    Console().print(diagnosis.table())
    if out is not None:
        diagnosis.save(out)
        print(f"picture: {out / PICTURE}\nfigures: {out / FIGURES}")
    return diagnosis
