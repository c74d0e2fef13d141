"""`PairTableSource`: pairs of images, a row of a table each."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from ssl_toolkit.data.copies import MOST_FILES, first_files
from ssl_toolkit.data.folders import ImageFile, check_folder
from ssl_toolkit.data.frames.files import Frame, natural_key
from ssl_toolkit.data.frames.source import SequenceSource
from ssl_toolkit.data.frames.table_source import FURTHER, PARTS
from ssl_toolkit.data.group_splits import joined
from ssl_toolkit.data.sources import LabelKind
from ssl_toolkit.data.table import ROLES, Table, read_table
from ssl_toolkit.data.table_source import Annotated, find_files
from ssl_toolkit.errors import counted


class PairTableSource(Annotated, SequenceSource):
    """Pairs of images that a table names, as sequences of two frames: the order of the rows plays no role.

    A pair is called ``first.png|second.png``. An image may be in several pairs; these are one group, since the image
    would else be on both sides of a split, and so are those of an identical file. A pair one of whose images cannot be
    decoded is left out.

    Args:
        table: As `ssl_toolkit.data.table.read_table` takes it.
        path: The folder that paths begin in; that of the table by default.
        labels: "none": the class of a pair is in the table.
        image_size: As for `SequenceSource`.
        channels: As for `SequenceSource`.
        max_frames: Of no use here.
        columns: As for `read_table`, with "second" for the second image.
        roles: As for `read_table`; without "group" no pairs are kept together.

    Raises:
        ValueError: In one line with the row, if the table cannot be used: a file that is not there, an image with
            itself, a pair with two rows, a split of another name, a group or an image in two splits.
    """

    noun: ClassVar[str] = "pairs"
    needs_all = True

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
        for role in PARTS:
            if role in (columns or {}):
                raise ValueError(
                    f"data.columns.second makes pairs of images, data.columns.{role} parts of sequences: leave one out"
                )
        read = read_table(table, columns, roles=roles, further=FURTHER)
        if labels == "folder" and "label" not in read.values:
            raise ValueError(
                f"the table '{read.file}' has no column 'label', and a pair has no folder that could be its class: "
                "name the column with --data.columns.label, or set --data.labels none"
            )
        root = read.file.parent if path is None else Path(path).expanduser()
        check_folder(root)
        names = [read.values["path"], [posixpath.normpath(text) for text in read.values["second"]]]
        files = [find_files(read, each, root) for each in names]
        self._images = _identities(read, root, files, with_copies="group" in roles)
        pairs = [f"{first}|{second}" for first, second in zip(*names, strict=True)]
        order = sorted(range(len(pairs)), key=lambda place: (natural_key(pairs[place]), pairs[place]))
        frames = {pairs[place]: [Frame(files[column][place].name, -1) for column in (0, 1)] for place in order}
        if len(frames) < len(pairs):  # else the labels of all that follow would be of other pairs
            twice = next(name for place, name in enumerate(pairs) if name in pairs[:place])
            raise ValueError(
                f"the table '{read.file}' has two pairs called {twice}: rename files that have a | in them"
            )
        every = sorted({file for found in files for file in found})
        self._hold(root, frames, every, image_size, channels, None, "\n".join(frames))
        self._annotate(read, order)
        if "group" in roles:
            self._keep_together(read, order)

    def summary(self) -> str:
        """What was taken from the table, and how many groups there are, for people."""
        num = len(np.unique(self._groups)) if self._groups is not None else len(self)
        few = f"; {counted(num, 'groups')} without an image in common" if num < len(self) else ""
        return f"{super().summary()}{few}"

    def _keep_together(self, read: Table, order: Sequence[int]) -> None:
        """Makes the pairs of one image one group; a group that has one of these joins it."""
        ids = self._images[:, list(order)]
        num = len(order)
        if self._splits is not None:
            _check_splits(read, self._images, dict(zip(order, self._splits.tolist(), strict=True)))
        # both places of a row are in one group, and all places of an image
        groups = joined(np.tile(np.arange(num), 2), ids.reshape(-1))[:num]
        if len(np.unique(groups)) == num:
            return
        self._groups = groups if self._groups is None else joined(self._groups, groups)


def _identities(table: Table, root: Path, files: Sequence[Sequence[ImageFile]], with_copies: bool) -> NDArray[np.int64]:
    """A number for each image, the same for identical files if these are looked for: int64 array ``[2, rows]``."""
    real = [[os.path.realpath(root / file.name) for file in column] for column in files]
    seen: dict[tuple[str, str], int] = {}
    for first, second, row in zip(*real, table.rows.tolist(), strict=True):
        if first == second:
            raise ValueError(f"the table '{table.file}' has one image as both of the pair in row {row:,}")
        if (earlier := seen.setdefault((first, second), row)) != row:
            raise ValueError(f"the table '{table.file}' has one pair of images in row {earlier:,} and in row {row:,}")
    size_of: dict[str, int] = {}
    for column, found in zip(real, files, strict=True):
        size_of |= {name: file.size for name, file in zip(column, found, strict=True)}
    place = {name: number for number, name in enumerate(size_of)}
    firsts = np.arange(len(place))
    if with_copies and len(place) <= MOST_FILES:
        firsts = first_files([(Path(name), size) for name, size in size_of.items()])
    return firsts[np.array([[place[name] for name in column] for column in real], dtype=np.int64)]


def _check_splits(table: Table, images: NDArray[np.int64], split_of: Mapping[int, str]) -> None:
    """Refuses an image that the table itself has in two splits."""
    seen: dict[int, int] = {}
    for row, pair in enumerate(images.T.tolist()):
        for column, image in zip(("path", "second"), pair, strict=True):
            earlier = seen.setdefault(image, row)
            if split_of[earlier] != split_of[row]:
                raise ValueError(
                    f"the table '{table.file}' has the image {table.values[column][row]}, or a copy, in two splits, "
                    f"{split_of[earlier]} in row {table.rows[earlier]:,} and {split_of[row]} in row "
                    f"{table.rows[row]:,}: what is measured would be too good; put all pairs of an image into one"
                )
