"""Annotation table: a CSV, TSV or Parquet file that names the images, a row each."""

from __future__ import annotations

import csv
import io
import posixpath
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ssl_toolkit.errors import counted, nearest
from ssl_toolkit.io.atomic import open_plain

ROLES = ("path", "label", "split", "group", "weight")
# a column that only happens to be called so is none
_ONLY_NAMED = ("weight",)
_SEPARATORS = {".csv": ",;\t", ".tsv": "\t", ".txt": "\t,;"}
_PARQUET = (".parquet", ".pq")
_YES_OR_NO = {"yes": 1.0, "true": 1.0, "no": 0.0, "false": 0.0}
_UNKNOWN = ("", "nan", "na", "n/a", "null", "none")
_SHOWN = 3
_LARGEST = float(np.finfo(np.float32).max)


class Table(NamedTuple):
    """What a table says of the images.

    Attributes:
        file: Of the table.
        rows: int64 array: the row of each image as a spreadsheet counts it, 2 for the first after the names of columns.
        values: The texts of each column, by what it is for: ``path``, and ``label``, ``split``, ``group`` and what
            else was asked for, where there are such; none is empty.
        names: The name of each of these columns in the file.
        targets: float32 array of shape ``[rows, targets]``: numbers, NaN where a cell is empty.
        weights: float32 array of shape ``[rows]``: how much each image counts, at least 0; None without such a column.
        covariates: float32 array of shape ``[rows, covariates]``: numbers, NaN where a cell is empty; None without any.
    """

    file: Path
    rows: NDArray[np.int64]
    values: dict[str, list[str]]
    names: dict[str, str]
    targets: NDArray[np.float32]
    weights: NDArray[np.float32] | None = None
    covariates: NDArray[np.float32] | None = None


def read_table(
    file: str | Path,
    columns: Mapping[str, str] | None = None,
    targets: Sequence[str] = (),
    covariates: Sequence[str] = (),
    roles: Sequence[str] = ROLES,
    further: Sequence[str] = (),
) -> Table:
    """Reads an annotation table.

    Args:
        file: Comma, semicolon or tab separated text in UTF-8 (.csv, .tsv, .txt), or Parquet (.parquet, .pq).
        columns: The name of the column for each of "path", "label", "split" and "group"; by default these names
            themselves. Only the path must be there, and what is named. And "weight", which is taken only if it is
            named.
        targets: Columns of numbers, or of yes and no (or true and false), which become 1 and 0.
        covariates: Likewise: what is given with each image, and not to be predicted.
        roles: What columns may be for; those of others are not read.
        further: What else columns may be for; each is taken only if it is named. One path may then have several rows,
            which differ in these.

    Raises:
        ValueError: In one line that names the row, if the file cannot be read, a column is missing, a cell is empty or
            no number where there must be one, or an image has two rows.
    """
    file = Path(file).expanduser()
    wanted = _wanted(columns, roles, further)
    for option, chosen in (("data.targets", targets), ("data.covariates", covariates)):
        twice = next((name for name in chosen if list(chosen).count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"{option} has the column {twice!r} twice")
    check_given(covariates, targets, wanted.get("label"))
    if not file.is_file():
        advice = "is a folder; give a file in it" if file.is_dir() else f"does not exist{_similar(file)}"
        raise ValueError(f"the table '{file}' {advice}")
    if file.suffix.lower() in _PARQUET:
        header, cells, rows = _read_parquet(file, [*wanted.values(), *targets, *covariates])
    elif file.suffix.lower() in _SEPARATORS:
        header, cells, rows = _read_text(file)
    else:
        endings = " ".join([*_SEPARATORS, *_PARQUET])
        raise ValueError(f"the table '{file}' ends in {file.suffix or 'nothing'!r}; tables end in {endings}")
    names = {role: name for role, name in wanted.items() if name in header}
    for role, name in wanted.items():
        if name not in header and (role == "path" or role in (columns or {})):
            option = f"; name it with --data.columns.{role} COLUMN" if name == role else ""
            raise ValueError(
                f"the table '{file}' has no column {name!r}; its columns are {', '.join(map(repr, header))}"
                f"{nearest(name, header)}{option}"
            )
    for option, chosen in (("data.targets", targets), ("data.covariates", covariates)):
        for name in chosen:
            if name not in header:
                raise ValueError(
                    f"the table '{file}' has no column {name!r} of {option}; its columns are "
                    f"{', '.join(map(repr, header))}{nearest(name, header)}"
                )
    values = {role: cells[header.index(name)] for role, name in names.items()}
    if not len(rows):
        raise ValueError(f"the table '{file}' has no rows")
    for role, texts in values.items():
        if empty := [int(row) for row, text in zip(rows, texts, strict=True) if not text]:
            raise ValueError(f"the table '{file}' has no {role} in {rows_of(empty)}")
    values["path"] = [posixpath.normpath(text) for text in values["path"]]
    if not any(role in values for role in further):
        options = " or ".join(f"--data.columns.{role} COLUMN" for role in further)
        _check_once(file, values["path"], rows, f"; what tells them apart is named by {options}" if further else "")
    numbers, given = (
        [_numbers(file, name, cells[header.index(name)], rows, option) for name in chosen]
        for option, chosen in (("data.targets", targets), ("data.covariates", covariates))
    )
    shaped = np.stack(numbers, axis=1) if numbers else np.zeros((len(rows), 0), dtype=np.float32)
    weights = _weights(file, names["weight"], values["weight"], rows) if "weight" in values else None
    return Table(file, rows, values, names, shaped, weights, np.stack(given, axis=1) if given else None)


def check_given(covariates: Sequence[str], targets: Sequence[str], label: str | None = None) -> None:
    """Raises a ValueError for a covariate that is what is to be predicted.

    Args:
        covariates: Names.
        targets: Names.
        label: Of the column of classes, if there is one.
    """
    for name in covariates:
        if name in targets:
            raise ValueError(
                f"{name!r} is in data.covariates and in data.targets, but what is to be predicted is not given: leave "
                "it out of one of them"
            )
        if name == label:
            raise ValueError(
                f"{name!r} of data.covariates is the column of the labels, which are to be predicted: leave it out, or "
                "name another column as data.columns.label"
            )


def rows_of(rows: Sequence[int]) -> str:
    """Names some rows: "row 7", or "3 rows (2, 5 and 9)"."""
    if len(rows) == 1:
        return f"row {rows[0]:,}"
    shown = ", ".join(f"{row:,}" for row in rows[:_SHOWN])
    return f"{len(rows):,} rows ({shown}{', ...' if len(rows) > _SHOWN else ''})"


def _wanted(columns: Mapping[str, str] | None, allowed: Sequence[str], further: Sequence[str]) -> dict[str, str]:
    known = (*ROLES, *further)
    unknown = next((role for role in columns or {} if role not in known), None)
    if unknown is not None:
        raise ValueError(f"data.columns has {unknown!r}, expected {', '.join(known)}{nearest(unknown, known)}")
    only_named = (*_ONLY_NAMED, *further)
    roles = [role for role in (*allowed, *further) if role not in only_named or role in (columns or {})]
    wanted = {role: (columns or {}).get(role, role) for role in roles}
    for number, (role, name) in enumerate(wanted.items()):
        other = next((earlier for earlier in list(wanted)[:number] if wanted[earlier] == name), None)
        if other is not None:
            raise ValueError(f"data.columns gives the column {name!r} for both {other} and {role}")
    return wanted


def _similar(file: Path) -> str:
    siblings = sorted(each.name for each in file.parent.iterdir()) if file.parent.is_dir() else []
    return nearest(file.name, siblings)


def _read_text(file: Path) -> tuple[list[str], list[list[str]], NDArray[np.int64]]:
    with open_plain(file) as opened:
        try:
            text = opened.read().decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"the table '{file}' is not UTF-8 (byte {error.start:,}); save it as CSV in UTF-8"
            ) from None
    first = text.split("\n", 1)[0]
    separator = max(_SEPARATORS[file.suffix.lower()], key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    header: list[str] = []
    lines, rows = [], []
    try:
        for number, line in enumerate(reader, start=1):
            cells = [cell.strip() for cell in line]
            if number == 1:
                header = cells
            elif any(cells):
                if len(cells) != len(header):
                    raise ValueError(
                        f"the table '{file}' has {counted(len(cells), 'cells')} in row {number:,}, but "
                        f"{counted(len(header), 'columns')}"
                    )
                lines.append(cells)
                rows.append(number)
    except csv.Error as error:
        raise ValueError(f"the table '{file}' cannot be read at line {reader.line_num:,}: {error}") from None
    _check_header(file, header)
    return header, [list(column) for column in zip(*lines, strict=True)] or [[] for _ in header], np.array(rows, int)


def _read_parquet(file: Path, wanted: Sequence[str]) -> tuple[list[str], list[list[str]], NDArray[np.int64]]:
    try:
        with open_plain(file) as opened:
            parquet = pq.ParquetFile(opened)
            header = parquet.schema_arrow.names
            _check_header(file, header)
            read = parquet.read([name for name in dict.fromkeys(wanted) if name in header])
    except pa.ArrowException as error:
        raise ValueError(f"the table '{file}' is no Parquet file ({type(error).__name__})") from None
    cells = [
        [] if name not in read.column_names else [_text(cell) for cell in read[name].to_pylist()] for name in header
    ]
    return header, cells, np.arange(2, read.num_rows + 2)


def _numbers(file: Path, name: str, texts: Sequence[str], rows: NDArray[np.int64], option: str) -> NDArray[np.float32]:
    """A column of targets or covariates."""
    numbers = np.full(len(texts), np.nan, dtype=np.float32)
    for place, text in enumerate(texts):
        word = text.lower()
        if word in _UNKNOWN:
            continue
        try:
            number = _YES_OR_NO[word] if word in _YES_OR_NO else float(text)
        except ValueError:
            number = np.inf
        if not abs(number) <= _LARGEST:
            raise ValueError(
                f"the table '{file}' has {text!r} in the column {name!r} of {option} in {rows_of([rows[place]])}, "
                "expected a number, yes or no, or nothing"
            )
        numbers[place] = number
    if np.isnan(numbers).all():
        raise ValueError(f"the table '{file}' has no number in the column {name!r} of {option}")
    return numbers


def _weights(file: Path, name: str, texts: Sequence[str], rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """A column of weights."""
    weights = np.zeros(len(texts), dtype=np.float32)
    for place, text in enumerate(texts):
        try:
            weight = float(text)
        except ValueError:
            weight = np.nan
        if not 0 <= weight <= _LARGEST:
            raise ValueError(
                f"the table '{file}' has the weight {text!r} in the column {name!r} in {rows_of([rows[place]])}, "
                "expected a number of at least 0"
            )
        weights[place] = weight
    return weights


def _text(cell: object) -> str:
    return "" if cell is None or cell != cell else str(cell).strip()


def _check_header(file: Path, header: Sequence[str]) -> None:
    twice = next((name for name in header if list(header).count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"the table '{file}' has two columns {twice!r}")


def _check_once(file: Path, paths: Sequence[str], rows: NDArray[np.int64], advice: str) -> None:
    seen: dict[str, int] = {}
    for path, row in zip(paths, rows.tolist(), strict=True):
        if (earlier := seen.setdefault(path, row)) != row:
            raise ValueError(f"the table '{file}' has the path {path} in row {earlier:,} and in row {row:,}{advice}")
