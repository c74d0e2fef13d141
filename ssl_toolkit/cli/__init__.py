"""The command line: ``ssl-toolkit COMMAND ...``. Each command's module is imported only when it is called."""

from __future__ import annotations

import errno
import importlib
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from ssl_toolkit.cli.imports import quick_imports
from ssl_toolkit.distributed.ranks import place
from ssl_toolkit.errors import CANNOT_WRITE, INTERRUPTED, RunFailed, is_interrupt, nearest
from ssl_toolkit.io.credentials import check_no_password
from ssl_toolkit.perf.malloc import keep_freed_memory

# the module that holds the command, as a function of the remaining arguments, and a line of help
COMMANDS = {
    "quickstart": (
        "ssl_toolkit.cli.quickstart",
        "see it work on built-in images in five minutes, without a network",
    ),
    "pretrain": ("ssl_toolkit.cli.train", "pretrain a backbone on unlabelled images with a pretext task"),
    "transfer": ("ssl_toolkit.cli.train", "train a head, or everything, on labelled data from pretrained weights"),
    "predict": ("ssl_toolkit.cli.predict", "write the class of every image to a table, by a run of transfer"),
    "pseudo-label": ("ssl_toolkit.cli.pseudo_label", "a table of labelled images and of those that a run is sure of"),
    "lr-find": ("ssl_toolkit.cli.lr_find", "find the learning rate to train with, by a hundred steps on your task"),
    "evaluate": (
        "ssl_toolkit.cli.features",
        "kNN and linear probe of a backbone beside random weights",
    ),
    "compare": ("ssl_toolkit.cli.compare", "several weights on the same images, each pair by a paired test"),
    "flatness": ("ssl_toolkit.cli.flatness", "how flat the minima are that runs have found, side by side"),
    "embed": ("ssl_toolkit.cli.features", "write the features of every image to a table"),
    "export": (
        "ssl_toolkit.cli.export",
        "convert weights for timm, torchvision or ONNX, or a trained network for ONNX",
    ),
    "diagnose": ("ssl_toolkit.cli.diagnose", "check a recipe before its run: diagnose pretrain|transfer -c RECIPE"),
    "describe": ("ssl_toolkit.cli.describe", "the layers of a network: sizes, receptive fields, parameters, cost"),
    "report": ("ssl_toolkit.cli.features", "write the local page of a run"),
}

USAGE = """usage: ssl-toolkit COMMAND [options]

Pretrain a CNN backbone on unlabelled images, transfer it, and know whether it was worth it.

commands:
{commands}

ssl-toolkit COMMAND --help lists a command's options. Start with: ssl-toolkit quickstart"""


def usage() -> str:
    """The text of ``ssl-toolkit --help``."""
    width = max(map(len, COMMANDS))
    return USAGE.format(commands="\n".join(f"  {command:{width}}  {line}" for command, (_, line) in COMMANDS.items()))


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command, and ends quietly with status 1 if the reader of its output has had enough (``| head``).

    Args:
        arguments: The command line without the program's name; None for the process's own.

    Returns:
        The exit status: 0 for success, 1 for a run that failed, 2 for what the user can mend, 74 for a disk that is
        full. A run that the system stopped ends with 143.
    """
    try:
        try:
            return _main(arguments)
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()  # what is kept back would fail when the interpreter ends
    except BrokenPipeError:
        # the interpreter would complain once more when it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1


def _main(arguments: Sequence[str] | None) -> int:
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0 if arguments else 2
    command, *rest = arguments
    if command == "--version":
        from importlib.metadata import version

        print(f"ssl-toolkit {version('ssl-toolkit')}")
        return 0
    if command not in COMMANDS:
        return fail(f"unknown command {command!r}{nearest(command, COMMANDS)} (ssl-toolkit --help lists them)")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)  # a task in a file of the user's own is found by its class path
    keep_freed_memory()
    try:
        check_no_password(rest, "the command line")
        with quick_imports():
            module = importlib.import_module(COMMANDS[command][0])
        getattr(module, command.replace("-", "_"))(rest)
    except RunFailed as error:
        fail(str(error))
        return 1
    except ValueError as error:
        return fail(str(error))
    except BrokenPipeError:
        raise
    except OSError as error:
        no_room = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        if error.filename is None and not no_room:
            raise
        fail(str(error.strerror) + (f": '{error.filename}'" if error.filename else " while writing a file"))
        return CANNOT_WRITE if no_room else 2
    except BaseException as error:
        if is_interrupt(error):
            print("\nssl-toolkit: interrupted; what is finished is kept", file=sys.stderr)
            return INTERRUPTED
        # what says of itself what is wrong, but not where
        if place() and not (
            isinstance(error, SystemExit) and error.code in (None, 0, 128 + signal.SIGTERM, INTERRUPTED)
        ):
            status = f"ended with status {error.code}" if isinstance(error, SystemExit) else "failed:"
            print(f"ssl-toolkit: {place()} {status}", file=sys.stderr)
        raise
    return 0


def fail(message: str) -> int:
    """Prints an error that the user can mend; returns its exit status."""
    where = f"{place()}: " if place() else ""
    print(f"ssl-toolkit: error: {where}{message}", file=sys.stderr)
    return 2
