"""Tables on disk: never overwritten, whole or not at all, and without a spreadsheet's formulas."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, TextIO

from ssl_toolkit.errors import nearest


def check_new_table(out: Path, suffixes: Iterable[str], command: str) -> None:
    """Raises a ValueError for a file that exists, or whose suffix is none of a command's."""
    suffixes = list(suffixes)
    if out.suffix not in suffixes:
        raise ValueError(
            f"{command} writes {', '.join(suffixes)}, got '{out.name}'{nearest(out.suffix or out.name, suffixes)}"
        )
    if out.exists():
        raise ValueError(f"'{out}' exists already and is not overwritten; give another name or remove it")


@contextlib.contextmanager
def as_text(file: BinaryIO) -> Iterator[TextIO]:
    """A binary file to write text to, as the csv module wants it; it stays open."""
    text = io.TextIOWrapper(file, encoding="utf-8", newline="")
    try:
        yield text
    finally:
        text.detach()


def no_formula(text: str) -> str:
    """A text that a spreadsheet takes for one: of what begins with these signs it would compute a formula."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r", "\n")) else text
