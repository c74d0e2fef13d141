"""`FrameLabelSource`: sequences whose frames a table labels."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ssl_toolkit.data.folders import ImageFile, check_folder
from ssl_toolkit.data.formats import SUFFIXES
from ssl_toolkit.data.frames.files import TENSOR_SUFFIXES, Frame, group_frames, natural_key
from ssl_toolkit.data.frames.source import SequenceSource
from ssl_toolkit.data.frames.table_source import PARTS, find_sequences, given_part, is_readable
from ssl_toolkit.data.table import ROLES, Table, read_table
from ssl_toolkit.data.table_source import Annotated, in_order

_ALIKE = ("split", "group", "weight")


class _Row(NamedTuple):
    """What a row labels: its sequence, and the numbers of the first of its frames and of the one after its last."""

    sequence: str
    start: int
    end: int


class FrameLabelSource(Annotated, SequenceSource):
    """The sequences that a table names, in the natural order of their names, with a label for each frame.

    A row labels a segment of a sequence, from the frame ``start`` to the one before ``end``, as Python counts; a whole
    sequence where it names neither; or, where its path is an image file, this frame of the sequence that is its folder.
    Frames that no row labels belong to their sequence, too; their label is not known (-1).

    Args:
        table: As `ssl_toolkit.data.table.read_table` takes it, with labels.
        path: The folder that paths begin in; that of the table by default.
        image_size: As for `SequenceSource`.
        channels: As for `SequenceSource`.
        max_frames: As for `SequenceSource`.
        columns: As for `read_table`, with "start" and "end".
        roles: As for `read_table`.

    Raises:
        ValueError: In one line with the row, if the table cannot be used: a sequence or a frame that is not there, a
            frame with two labels, or a sequence whose rows differ in split, group or weight.
    """

    noun = "sequences"

    def __init__(
        self,
        table: str | Path,
        path: str | Path | None = None,
        image_size: int = 224,
        channels: int = 3,
        max_frames: int | None = None,
        columns: Mapping[str, str] | None = None,
        roles: Sequence[str] = ROLES,
    ) -> None:
        read = read_table(table, columns, roles=roles, further=PARTS)
        if "label" not in read.values:
            raise ValueError(
                f"the table '{read.file}' has no column 'label', and data.frame_labels needs one; name it with "
                "--data.columns.label COLUMN"
            )
        root = read.file.parent if path is None else Path(path).expanduser()
        check_folder(root)
        names = [_sequence(read, place) for place in range(len(read.rows))]
        files, self.left_out = find_sequences(read, root, names)
        frames = group_frames(root, [file.name for found in files.values() for file in found], "none")
        _check_different(read, root, names)
        rows = [_labelled(read, root, place, frames[name]) for place, name in enumerate(names)]
        labels = _labels(read, rows, frames)
        first = _first_rows(read, names)
        sequences = {name: frames[name] for name in sorted(first, key=lambda name: (natural_key(name), name))}
        every: list[ImageFile] = sorted({file for found in files.values() for file in found})
        self._hold(root, sequences, every, image_size, channels, max_frames)
        self._annotate(read, [first[name] for name in sequences])
        self.class_names = in_order(set(read.values["label"]))
        number = {name: place for place, name in enumerate(self.class_names)}
        known = {frame: number[text] for frame, text in labels.items()}
        self._labels = None
        self.frame_labels = np.array([known.get(frame, -1) for frame in self._used()], dtype=np.int64)


def _sequence(read: Table, place: int) -> str:
    """The sequence that a row is about: what its path names, or the folder of the image file that it names."""
    name = read.values["path"][place]
    if Path(name).suffix.lower() not in SUFFIXES - TENSOR_SUFFIXES:
        return name
    for role in PARTS:
        if role in read.values:
            raise ValueError(
                f"the table '{read.file}' names the image {name} in row {read.rows[place]:,}, but {role} is a frame of "
                f"a sequence: name the folder, or leave out --data.columns.{role}"
            )
    folder = name.rpartition("/")[0]
    if not folder:
        raise ValueError(
            f"the table '{read.file}' names the image {name} in row {read.rows[place]:,}, which lies in no folder of a "
            "sequence"
        )
    return folder


def _check_different(read: Table, root: Path, names: list[str]) -> None:
    """Refuses two names of one sequence, whose parts could come into two splits."""
    name_of: dict[str, str] = {}
    for name, row in zip(names, read.rows.tolist(), strict=True):
        other = name_of.setdefault(os.path.realpath(root / name), name)
        if other != name:
            raise ValueError(f"the table '{read.file}' has {name} in row {row:,}, which is the same as {other}")


def _labelled(read: Table, root: Path, place: int, frames: Sequence[Frame]) -> _Row:
    name = read.values["path"][place]
    if Path(name).suffix.lower() in SUFFIXES - TENSOR_SUFFIXES:
        number = next((number for number, frame in enumerate(frames) if frame.file == name), None)
        if number is None:
            raise ValueError(
                f"the table '{read.file}' names the image {name} in row {read.rows[place]:,}, which is not there"
            )
        return _Row(name.rpartition("/")[0], number, number + 1)
    start, end = given_part(read, place, frames, is_readable=lambda: is_readable(root / frames[0].file))
    return _Row(name, start, end)


def _labels(read: Table, rows: list[_Row], frames: Mapping[str, Sequence[Frame]]) -> dict[Frame, str]:
    """The label of each frame that has one."""
    labels: dict[Frame, str] = {}
    row_of: dict[Frame, int] = {}
    for (name, start, end), text, row in zip(rows, read.values["label"], read.rows.tolist(), strict=True):
        for number in range(start, min(end, len(frames[name]))):
            frame = frames[name][number]
            earlier = row_of.setdefault(frame, row)
            if earlier != row:
                raise ValueError(
                    f"the table '{read.file}' labels frame {number} of {name} in row {earlier:,} and in row {row:,}; "
                    "a frame has one label"
                )
            labels[frame] = text
    return labels


def _first_rows(read: Table, names: list[str]) -> dict[str, int]:
    """The place in the table of the first row of each sequence; its rows say the same of the whole sequence."""
    first: dict[str, int] = {}
    for place, name in enumerate(names):
        other = first.setdefault(name, place)
        for role in _ALIKE:
            if role in read.values and read.values[role][place] != read.values[role][other]:
                raise ValueError(
                    f"the table '{read.file}' has the {role} {read.values[role][other]!r} for {name} in row "
                    f"{read.rows[other]:,} and {read.values[role][place]!r} in row {read.rows[place]:,}: a sequence "
                    f"has one {role}"
                )
    return first
