"""Helpers for errors that a user can act on: one line, with the nearest valid name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping

# exit status of a program that cannot write (EX_IOERR of sysexits.h)
CANNOT_WRITE = 74
# and of one that Ctrl-C has ended, as a shell reports it
INTERRUPTED = 130


class RunFailed(ValueError):
    """Failure of a run while it trains, not before."""


def is_interrupt(error: BaseException) -> bool:
    """Whether Ctrl-C ended a training, at which Lightning leaves the interpreter with a status of its own."""
    is_exit = isinstance(error, SystemExit)
    return isinstance(error, KeyboardInterrupt) or (is_exit and isinstance(error.__context__, KeyboardInterrupt))


def counted(number: int, noun: str) -> str:
    """A number with its noun, given in the plural: ``1 image``, ``2,000 images``, ``1 class``, ``1 batch``."""
    one = noun.removesuffix("es" if noun.endswith(("sses", "ches", "xes")) else "s")
    return f"{number:,} {one if number == 1 else noun}"


def no_switch(name: str, value: object) -> str:
    """The message for a value of ``pretrained`` that is neither true nor false, a file as a rule."""
    return (
        f"{name} is {value!r}, expected true or false: true takes timm's own weights; a weights file is for transfer "
        "(--model.weights FILE) or, in Python, load_backbone"
    )


def nearest(name: str, choices: Iterable[str], shown: Mapping[str, str] | None = None) -> str:
    """A suggestion to append to an error message.

    Args:
        name: What the user gave.
        choices: The valid names.
        shown: What to suggest instead of a name, by the name; None for the names themselves.

    Returns:
        ``"; did you mean 'x'?"`` for the valid name that is nearest, or an empty string if none is near.
    """
    choices = list(choices)
    matches = difflib.get_close_matches(name, choices, n=1, cutoff=0.5)
    if not matches:
        lowered = {choice.lower(): choice for choice in choices}
        matches = [lowered[match] for match in difflib.get_close_matches(name.lower(), lowered, n=1, cutoff=0.5)]
    return f"; did you mean {(shown or {}).get(matches[0], matches[0])!r}?" if matches else ""


def printable(text: str) -> str:
    """A text that a file brought along, on one line and without codes that a terminal would obey."""
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)
