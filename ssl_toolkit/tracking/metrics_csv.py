"""The file ``metrics.csv`` of a run: one row for each time something was logged, one column for each metric."""

from __future__ import annotations

import csv
import io
import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ssl_toolkit.io.atomic import write_atomically

FILE = "metrics.csv"


def read_metrics(file: str | Path) -> dict[str, list[float]]:
    """Reads a metrics file.

    Args:
        file: The file, or the run's folder.

    Returns:
        The columns by name, all of the same length, with NaN where a row has no value. Empty if there is no file, or
        nothing in it can be read; damaged rows are left out.
    """
    file = Path(file) / FILE if Path(file).is_dir() else Path(file)
    columns, rows, _ = _read(file)
    return {name: [_number(row[name]) for row in rows] for name in columns} if rows else {}


def last_values(file: str | Path) -> dict[str, float]:
    """The last value of each column of a metrics file that has one, a NaN that was logged included.

    Args:
        file: The file, or the run's folder.
    """
    file = Path(file) / FILE if Path(file).is_dir() else Path(file)
    return {name: _number(text) for row in _read(file)[1] for name, text in row.items() if text}


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")


def _read(file: Path) -> tuple[list[str], list[dict[str, str]], int]:
    """The columns, the rows by column, and how many lines are no rows."""
    if not file.is_file():
        return [], [], 0
    text = file.read_text(encoding="utf-8", errors="replace")
    # a process killed while it wrote leaves a last line without an end
    columns, *found = list(_lines(text[: text.rfind("\n") + 1])) or [[]]
    if "step" not in columns or len(set(columns)) < len(columns):
        return [], [], 1 + len(found)
    rows = [dict(zip(columns, cells, strict=True)) for cells in found if len(cells) == len(columns)]
    rows = [row for row in rows if math.isfinite(_number(row["step"]))]
    return columns, rows, len(found) - len(rows)


def _lines(text: str) -> Iterator[list[str]]:
    """The cells of each line; none of one that is no CSV."""
    reader = csv.reader(io.StringIO(text))
    while True:
        try:
            yield next(reader)
        except StopIteration:
            return
        except csv.Error:
            yield []


def _text(columns: list[str], rows: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    csv.DictWriter(text, columns, lineterminator="\n").writerows(rows)
    return text.getvalue()


class MetricsFile:
    """Appends rows to a CSV file, an existing one included, and widens it when a metric is new.

    What is in the file is never lost to a kill: rows are appended in one write, and the file is only ever replaced by
    a complete one. A full disk is reported once; the rows wait in memory for the next try.

    Args:
        file: The file.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._columns: list[str] = []
        self._pending: list[dict[str, Any]] = []
        self._warned = False
        if file.is_file():
            columns, rows, num_damaged = _read(file)
            if num_damaged:
                kept = file.with_name(f"{file.name}.damaged")
                file.replace(kept)
                print(f"{file} has {num_damaged:,} damaged lines: they are left out, and kept in {kept}")
            self._replace(columns, rows)

    def append(self, metrics: dict[str, Any], step: int) -> None:
        """Takes a row of numbers or tensors, to be written by the next `save`."""
        plain = {name: value.item() if hasattr(value, "item") else value for name, value in metrics.items()}
        self._pending.append({"step": step, **plain})

    def save(self) -> None:
        """Writes the rows that wait."""
        if not self._pending:
            return
        try:
            self._write()
        except OSError as error:
            if not self._warned:
                message = f"cannot write {self.file} ({error}); training goes on, and the rows wait in memory"
                warnings.warn(message, stacklevel=2)
            self._warned = True
        else:
            self._pending = []

    def _write(self) -> None:
        seen = dict.fromkeys(name for row in self._pending for name in row)
        new = [name for name in seen if name not in self._columns]
        if new:
            rows = _read(self.file)[1]
            # the step and the epoch first, for the reader; then the metrics as they came
            order = {"step": 0, "epoch": 1}
            columns = sorted([*self._columns, *new], key=lambda name: order.get(name, 2))
            self._replace(columns, [*rows, *self._pending])
        else:
            with self.file.open("a", encoding="utf-8", newline="") as file:
                file.write(_text(self._columns, self._pending))

    def drop_from(self, step: int) -> None:
        """Drops the rows of this step and of later ones, which a resumed run writes again."""
        if not self.file.is_file():
            return
        columns, rows, _ = _read(self.file)
        self._replace(columns, [row for row in rows if _number(row["step"]) < step])

    def _replace(self, columns: list[str], rows: list[dict[str, Any]]) -> None:
        header = dict(zip(columns, columns, strict=True))
        write_atomically(self.file, _text(columns, [header, *rows]))
        self._columns = columns
