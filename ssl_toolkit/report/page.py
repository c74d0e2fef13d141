"""HTML page of simple pieces: text, tables, figures, commands."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ssl_toolkit.io.atomic import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

# the start of a number, which may go on with a spread, an interval or a unit
NUMBER = re.compile("[+\N{MINUS SIGN}\N{PLUS-MINUS SIGN}-]?\\d[\\d,. ]*($|[^\\w.])|[\N{EN DASH}-]?$")


@dataclass(frozen=True)
class Text:
    """A paragraph of plain text."""

    kind: ClassVar[str] = "text"
    text: str


@dataclass(frozen=True)
class Code:
    """Commands or a file, set as they are.

    Args:
        text: The lines.
        summary: If given, the lines are folded away under this title until one opens them.
    """

    kind: ClassVar[str] = "code"
    text: str
    summary: str = ""


@dataclass(frozen=True)
class Table:
    """A table; columns of numbers are set flush right.

    Args:
        headers: A name for each column; empty for a table without a head.
        rows: The cells, shown as ``str`` shows them.
        caption: What the table shows.
    """

    kind: ClassVar[str] = "table"
    headers: Sequence[str]
    rows: Sequence[Sequence[Any]]
    caption: str = ""

    @property
    def numeric(self) -> list[bool]:
        """For each column, whether its cells are numbers."""
        columns = list(zip(*self.rows, strict=True)) or [()] * len(self.headers)
        return [bool(column) and all(NUMBER.match(str(cell)) for cell in column) for column in columns]


@dataclass(frozen=True)
class Figure:
    """One or several pictures side by side, as many as fit.

    Args:
        pictures: PNG files as bytes, or figures of matplotlib.
        caption: What they show.
        alt: What they show, for those who cannot see them; the caption by default.
    """

    kind: ClassVar[str] = "figure"
    pictures: Sequence[bytes | Drawing]
    caption: str = ""
    alt: str = ""

    def images(self) -> list[dict[str, str]]:
        """Each picture as SVG text or as a data URL."""
        from ssl_toolkit.report.drawing import to_svg

        return [
            {"url": "data:image/png;base64," + base64.b64encode(picture).decode()}
            if isinstance(picture, bytes)
            else {"svg": to_svg(picture)}
            for picture in self.pictures
        ]


Piece = Text | Code | Table | Figure


@dataclass(frozen=True)
class Section:
    """A part of a page under its own heading."""

    title: str
    pieces: Sequence[Piece] = field(default_factory=list)


def write_page(path: str | Path, title: str, sections: Sequence[Section], subtitle: str = "") -> Path:
    """Writes a page as one HTML file that needs nothing else.

    Args:
        path: The file; an older one is replaced.
        title: The title.
        sections: The content, from top to bottom. Text of any origin is safe here: it is shown, never interpreted.
        subtitle: A line under the title.

    Returns:
        The file.
    """
    from jinja2 import Environment, StrictUndefined

    template = files("ssl_toolkit.report").joinpath("page.html").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    page = environment.from_string(template).render(title=title, subtitle=subtitle, sections=sections)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, page)
    return path
