"""`TableSource`: the images that a table names, with their labels, splits and groups."""

from __future__ import annotations

import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from ssl_toolkit.data.folders import ImageFile, check_folder, label_by_folder
from ssl_toolkit.data.sources import FolderSource, LabelKind, Source
from ssl_toolkit.data.table import ROLES, Table, read_table, rows_of
from ssl_toolkit.errors import counted, nearest

SPLITS = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}
_SHOWN = 3


class Annotated(Source):
    """Base class of sources whose samples are the rows of a table: what it says of them.

    Attributes:
        noun: What the samples are called in messages.
        table: The table.
    """

    noun: ClassVar[str] = "images"
    table: Table
    _labels: NDArray[np.int64] | None = None

    def _annotate(
        self, read: Table, rows: Sequence[int], targets: Sequence[str] = (), covariates: Sequence[str] = ()
    ) -> None:
        """Takes over what a table says.

        Args:
            read: The table.
            rows: The place in the table of the row of each sample.
            targets: As for `read_table`.
            covariates: As for `read_table`.
        """
        order = np.array(rows, dtype=np.int64)
        values = {role: [texts[place] for place in order] for role, texts in read.values.items()}
        self.table = read
        self._splits = _splits(read, order) if "split" in values else None
        self._groups = np.unique(values["group"], return_inverse=True)[1] if "group" in values else None
        if self._splits is not None and "group" in values:
            _check_groups(read, values["group"], self._splits)
        self.target_names, self._targets = tuple(targets), read.targets[order] if targets else None
        self._weights = None if read.weights is None else read.weights[order]
        self.covariate_names = tuple(covariates)
        self._covariates = None if read.covariates is None else read.covariates[order]
        self.labels_may_change = "label" in values
        if "label" in values:
            self.class_names = in_order(set(values["label"]))
            number = {name: place for place, name in enumerate(self.class_names)}
            self._labels = np.array([number[text] for text in values["label"]], dtype=np.int64)

    def summary(self) -> str:
        """What was taken from the table, for people."""
        columns = ", ".join(f"{role} from {name!r}" for role, name in self.table.names.items())
        columns += f", targets {', '.join(map(repr, self.target_names))}" if self.target_names else ""
        columns += f", covariates {', '.join(map(repr, self.covariate_names))}" if self.covariate_names else ""
        return f"{self.table.file}: {counted(len(self), self.noun)}; {columns}"

    def targets(self) -> NDArray[np.float32] | None:
        return self._targets

    def weights(self) -> NDArray[np.float32] | None:
        return self._weights

    def covariates(self) -> NDArray[np.float32] | None:
        return self._covariates

    def given_splits(self) -> NDArray[np.str_] | None:
        return self._splits

    def split_groups(self) -> NDArray[np.int64] | None:
        return self._groups


class TableSource(Annotated, FolderSource):
    """The images of a folder that a table names, in the order of their paths: the order of the rows plays no role.

    Args:
        table: As `ssl_toolkit.data.table.read_table` takes it.
        path: The folder that paths begin in; that of the table by default.
        labels: What makes the class of an image where the table has no label: "folder" its first-level sub-folder,
            "none" nothing.
        image_size: As for `FolderSource`.
        channels: As for `FolderSource`.
        columns: As for `read_table`.
        targets: As for `read_table`.
        covariates: As for `read_table`.
        roles: As for `read_table`.

    Raises:
        ValueError: In one line with the row, if the table cannot be used: an image that is not there, a split of
            another name, a group in two splits.
    """

    def __init__(
        self,
        table: str | Path,
        path: str | Path | None = None,
        labels: LabelKind = "none",
        image_size: int | None = None,
        channels: int = 3,
        columns: Mapping[str, str] | None = None,
        targets: Sequence[str] = (),
        covariates: Sequence[str] = (),
        roles: Sequence[str] = ROLES,
    ) -> None:
        read = read_table(table, columns, targets, covariates, roles)
        folder = read.file.parent if path is None else Path(path).expanduser()
        check_folder(folder)
        files = find_files(read, read.values["path"], folder)
        order = sorted(range(len(files)), key=lambda place: files[place].name)
        self._hold(folder, [files[place] for place in order], image_size, channels)
        self._annotate(read, order, targets, covariates)
        if "label" not in read.values and labels == "folder":
            self.class_names, self._labels = label_by_folder(folder, self._names)


def find_files(table: Table, names: Sequence[str], folder: Path) -> list[ImageFile]:
    """The file of each row.

    Args:
        table: The table.
        names: What the rows call them.
        folder: Where these names begin.

    Raises:
        ValueError: In one line with the rows, if some are not there.
    """
    found, missing = [], []
    for name, row in zip(names, table.rows.tolist(), strict=True):
        try:
            status = (folder / name).stat()
        except OSError:
            missing.append((row, name))
            continue
        if stat.S_ISREG(status.st_mode):
            found.append(ImageFile(name, status.st_size, status.st_mtime_ns))
        else:
            missing.append((row, name))
    if missing:
        shown = ", ".join(f"row {row:,}: {name}" for row, name in missing[:_SHOWN])
        raise ValueError(
            f"the table '{table.file}' names {counted(len(missing), 'files')} of {len(table.rows):,} that "
            f"{'is' if len(missing) == 1 else 'are'} not in '{folder}' ({shown}{', ...' * (len(missing) > _SHOWN)}); "
            "its paths begin in data.path"
        )
    return found


def _splits(table: Table, order: NDArray[np.int64]) -> NDArray[np.str_]:
    """The split of each image under our names, in an order of the rows."""
    split_of = {alias: split for split, aliases in SPLITS.items() for alias in aliases}
    texts = [text.lower() for text in table.values["split"]]
    for text, given, row in zip(texts, table.values["split"], table.rows.tolist(), strict=True):
        if text not in split_of:
            known = ", ".join(alias for aliases in SPLITS.values() for alias in aliases)
            raise ValueError(
                f"the table '{table.file}' has the split {given!r} in {rows_of([row])}, expected one of {known}"
                f"{nearest(text, split_of)}"
            )
    return np.array([split_of[text] for text in texts])[order]


def _check_groups(table: Table, groups: list[str], splits: NDArray[np.str_]) -> None:
    """Refuses a group that the table itself has in two splits."""
    split_of: dict[str, str] = {}
    for group, split in zip(groups, splits.tolist(), strict=True):
        if (earlier := split_of.setdefault(group, split)) != split:
            first, second = sorted([earlier, split])
            raise ValueError(
                f"the table '{table.file}' has the group {group!r} in two splits, {first} and {second}: what is "
                "measured would be too good; put each group into one"
            )


def in_order(names: set[str]) -> list[str]:
    """Classes by their names; whole numbers by their value."""
    if all(name.isascii() and name.removeprefix("-").isdigit() for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)
