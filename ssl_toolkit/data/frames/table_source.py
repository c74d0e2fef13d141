"""`SequenceTableSource`: the sequences that a table names, or parts of them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np

from ssl_toolkit.data.folders import ImageFile, check_folder, find_images, label_by_folder
from ssl_toolkit.data.frames.files import TENSOR_SUFFIXES, Frame, TensorFile, group_frames, natural_key
from ssl_toolkit.data.frames.source import SequenceSource
from ssl_toolkit.data.group_splits import joined
from ssl_toolkit.data.sources import LabelKind
from ssl_toolkit.data.table import ROLES, Table, read_table
from ssl_toolkit.data.table_source import Annotated
from ssl_toolkit.errors import counted

PARTS = ("start", "end")
FURTHER = (*PARTS, "second")
_SHOWN = 3


class _Row(NamedTuple):
    """The sequence of a row: its name, its frames, and the folder or file they come from, whatever leads there."""

    name: str
    frames: list[Frame]
    origin: str


class SequenceTableSource(Annotated, SequenceSource):
    """The sequences that a table names, in the natural order of their names: the order of the rows plays no role.

    With a column for the first frame of a part, or for the one after its last, a row is that part of a sequence and is
    called ``take[10:20]``, as Python counts: by the places of the frames in their order, from 0, whatever numbers are
    in the names of their files. The rows of one path are never in two splits.

    Args:
        table: As `ssl_toolkit.data.table.read_table` takes it.
        path: The folder that paths begin in; that of the table by default.
        labels: What makes the class of a sequence where the table has no label: "folder" its first-level sub-folder,
            "none" nothing.
        image_size: As for `SequenceSource`.
        channels: As for `SequenceSource`.
        max_frames: As for `SequenceSource`; of a part, its own frames.
        columns: As for `read_table`, with "start" and "end".
        roles: As for `read_table`; without "group" no rows are kept together.

    Raises:
        ValueError: In one line with the row, if the table cannot be used: a sequence or a frame that is not there, a
            split of another name, a group or a folder in two splits.
    """

    noun: ClassVar[str] = "sequences"

    def __init__(
        self,
        table: str | Path,
        path: str | Path | None = None,
        labels: LabelKind = "none",
        image_size: int = 224,
        channels: int = 3,
        max_frames: int | None = None,
        columns: Mapping[str, str] | None = None,
        roles: Sequence[str] = ROLES,
    ) -> None:
        read = read_table(table, columns, roles=roles, further=FURTHER)
        root = read.file.parent if path is None else Path(path).expanduser()
        check_folder(root)
        files, self.left_out = find_sequences(read, root, read.values["path"])
        rows = _rows(read, root, files)
        order = sorted(range(len(rows)), key=lambda place: (natural_key(rows[place].name), rows[place].name))
        sequences = {rows[place].name: rows[place].frames for place in order}
        every = sorted({file for found in files.values() for file in found})
        self._hold(root, sequences, every, image_size, channels, max_frames, "\n".join(sequences))
        self._annotate(read, order)
        if "group" in roles:
            self._keep_together(read, [rows[place].origin for place in order], order)
        if "label" not in read.values and labels == "folder":
            paths = [read.values["path"][place] for place in order]
            self.class_names, self._labels = label_by_folder(root, paths)

    def _keep_together(self, read: Table, origins: list[str], order: list[int]) -> None:
        """Makes the rows of one origin one group; a group that has one of these joins it."""
        if len(set(origins)) == len(origins):
            return
        if self._splits is not None:
            _check_splits(read, origins, self._splits.tolist(), order)
        together = np.unique(origins, return_inverse=True)[1]
        self._groups = together if self._groups is None else joined(self._groups, together)


def _check_splits(read: Table, origins: list[str], splits: list[str], order: list[int]) -> None:
    """Refuses an origin that the table itself has in two splits."""
    seen: dict[str, tuple[int, str]] = {}
    for row, origin, split in sorted(zip(order, origins, splits, strict=True)):
        earlier, other = seen.setdefault(origin, (row, split))
        if split != other:
            raise ValueError(
                f"the table '{read.file}' has parts of {read.values['path'][row]} in two splits, {other} in row "
                f"{read.rows[earlier]:,} and {split} in row {read.rows[row]:,}: what is measured would be too good; "
                "put all parts of a sequence into one"
            )


def find_sequences(table: Table, root: Path, names: Sequence[str]) -> tuple[dict[str, list[ImageFile]], Counter[str]]:
    """The files of the frames of sequences, and how many others lie beside them.

    Args:
        table: The table.
        root: Where the names begin.
        names: Of the sequence of each row.

    Raises:
        ValueError: In one line with the rows, if some are not there.
    """
    found: dict[str, list[ImageFile]] = {}
    left_out: Counter[str] = Counter()
    missing: dict[str, int] = {}
    for name, row in zip(names, table.rows.tolist(), strict=True):
        if name in found or name in missing:
            continue
        try:
            found[name], others = _files(root, name)
            left_out += others
        except (ValueError, OSError):
            missing[name] = row
    if missing:
        shown = ", ".join(f"row {row:,}: {name}" for name, row in list(missing.items())[:_SHOWN])
        shown += ", ..." * (len(missing) > _SHOWN)
        raise ValueError(
            f"the table '{table.file}' names {counted(len(missing), 'sequences')} of {len(missing) + len(found):,} "
            f"that {'is' if len(missing) == 1 else 'are'} not in '{root}' ({shown}); its "
            "paths begin in data.path, and each is a folder with frames or a file with a tensor "
            f"({' '.join(sorted(TENSOR_SUFFIXES))})"
        )
    return found, left_out


def _files(root: Path, name: str) -> tuple[list[ImageFile], Counter[str]]:
    """The frames that lie directly in a folder, or a file with a tensor."""
    place = root / name
    if place.is_dir():
        images, left_out = find_images(place, TENSOR_SUFFIXES)
        tensors = {image for image in images if Path(image.name).suffix.lower() in TENSOR_SUFFIXES}
        own = [image for image in images if "/" not in image.name and image not in tensors]
        if not own:
            raise ValueError("no frames")
        return [image._replace(name=f"{name}/{image.name}") for image in own], left_out
    if place.suffix.lower() not in TENSOR_SUFFIXES or not place.is_file():
        raise ValueError("no sequence")
    status = place.stat()
    return [ImageFile(name, status.st_size, status.st_mtime_ns)], Counter()


def _rows(table: Table, root: Path, files: Mapping[str, list[ImageFile]]) -> list[_Row]:
    """The sequence of each row."""
    frames = group_frames(root, [file.name for found in files.values() for file in found], "none")
    origins = {name: os.path.realpath(root / name) for name in files}
    in_parts = any(role in table.values for role in PARTS)
    rows: list[_Row] = []
    seen: dict[tuple[str, int, int], int] = {}
    for place, (name, row) in enumerate(zip(table.values["path"], table.rows.tolist(), strict=True)):
        own, start, end = frames[name], 0, len(frames[name])
        if in_parts:
            start, end = given_part(table, place, own, lambda own=own: is_readable(root / own[0].file))
            own = own[start:end] or own[:1]  # a file that cannot be read is named with the bad ones when it is read
        earlier = seen.setdefault((origins[name], start, end), row)
        if earlier != row:
            what = f"the frames {start} to {end} of {name}" if in_parts else f"the sequence {name}"
            raise ValueError(f"the table '{table.file}' has {what} in row {earlier:,} and in row {row:,}")
        rows.append(_Row(f"{name}[{start}:{end}]" if in_parts else name, own, origins[name]))
    return rows


def given_part(table: Table, place: int, frames: Sequence[Frame], is_readable: Callable[[], bool]) -> tuple[int, int]:
    """The part of a sequence that a row names: the number of its first frame, and of the one after its last.

    Args:
        table: The table.
        place: Of the row.
        frames: Of the whole sequence.
        is_readable: Whether the file with a tensor can be read; one that cannot may have had more frames.

    Raises:
        ValueError: In one line with the row, if it is none.
    """
    start, end = _number(table, "start", place, 0), _number(table, "end", place, len(frames))
    name, row = table.values["path"][place], f"row {table.rows[place]:,}"
    if start >= end:
        raise ValueError(
            f"the table '{table.file}' has the part {start} to {end} of {name} in {row}, expected a start (from 0) "
            "below the end, which is the number of the first frame after the part"
        )
    if end > len(frames):
        if frames[0].place >= 0 and not is_readable():
            return start, end
        raise ValueError(
            f"the table '{table.file}' has the part {start} to {end} of {name} in {row}, which has "
            f"{counted(len(frames), 'frames')}: the last part ends at {len(frames)}"
        )
    return start, end


def is_readable(file: Path) -> bool:
    """Whether a file with a tensor can be read."""
    try:
        TensorFile(file)
    except Exception:
        return False
    return True


def _number(table: Table, role: str, place: int, default: int) -> int:
    if role not in table.values:
        return default
    text = table.values[role][place]
    try:
        number = float(text)  # spreadsheets write 7.0, too
    except ValueError:
        number = -1.0
    if not (number >= 0 and number.is_integer()):
        raise ValueError(
            f"the table '{table.file}' has {text!r} in the column {table.names[role]!r} in row {table.rows[place]:,}, "
            "expected the number of a frame, from 0"
        )
    return int(number)
