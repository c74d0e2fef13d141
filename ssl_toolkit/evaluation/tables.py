"""Tables on disk: never overwritten, whole or not at all, and without a spreadsheet's formulas."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

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
def new_table(out: Path) -> Iterator[Path]:
    """A temporary name to write to; the file has its own name when the context ends well, and else is not there."""
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        yield temporary
        temporary.replace(out)
    finally:
        temporary.unlink(missing_ok=True)


def no_formula(text: str) -> str:
    """A text that a spreadsheet takes for one: of what begins with these signs it would compute a formula."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r", "\n")) else text
