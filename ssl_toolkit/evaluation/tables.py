"""Tables on disk: never overwritten, whole or not at all, and without a spreadsheet's formulas."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, TextIO

from ssl_toolkit.distributed.ranks import launched, world_size
from ssl_toolkit.errors import nearest


def check_new_table(out: Path, suffixes: Iterable[str], command: str, others: str = "") -> None:
    """Raises a ValueError for a file that exists, or whose suffix is none of a command's."""
    suffixes = list(suffixes)
    if out.suffix not in suffixes:
        hint = nearest(out.suffix or out.name, suffixes)
        raise ValueError(f"{command} writes {', '.join(suffixes)}{others}, got '{out.name}'{hint}")
    if out.exists():
        raise ValueError(f"'{out}' exists already and is not overwritten; give another name or remove it")


def check_table(out: Path, suffixes: Iterable[str], command: str, part_size: int | None) -> bool:
    """As `check_new_table`, where a name without a suffix is a folder of part files; whether it is one.

    Raises:
        ValueError: Also for a size of parts that is none, and if several processes would write one file.
    """
    is_folder = not out.suffix
    if part_size is not None and part_size < 1:
        raise ValueError(f"part_size is {part_size}, expected at least 1")
    if is_folder:
        return True
    check_new_table(out, suffixes, command, " or a folder (a name without a suffix)")
    if part_size is not None:
        raise ValueError(
            f"part_size is for a folder, a name without a suffix, but '{out.name}' is one file; leave out one"
        )
    if launched().rank or world_size() > 1:
        raise ValueError(
            f"each of {launched().world_size} processes would write '{out}'; give --out a folder (a name without a "
            "suffix), in which each writes its part files"
        )
    return False


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
