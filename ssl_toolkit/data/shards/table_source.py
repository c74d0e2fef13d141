"""`ShardTableSource`: the images of tar shards that a table names."""

from __future__ import annotations

import posixpath
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ssl_toolkit.data.folders import label_by_folder
from ssl_toolkit.data.shards.remote import plain
from ssl_toolkit.data.shards.source import ShardSource
from ssl_toolkit.data.sources import LabelKind, SubsetSource
from ssl_toolkit.data.table import Table
from ssl_toolkit.data.table_source import Annotated
from ssl_toolkit.errors import counted, printable

_SHOWN = 3


class ShardTableSource(Annotated, SubsetSource):
    """The images of shards that a table names, in the order of the shards: that of the rows plays no role.

    A path is the name that ``embed`` and ``predict`` write, with the shard in it (``train-000.tar/a/17.jpg``). Where
    one image only is called so, it may be the name in the shard, with its ending (``a/17.jpg``) or without (``a/17``).

    Args:
        table: The table.
        shards: All images; their own labels count where the table has none.
        labels: As for `ssl_toolkit.data.table_source.TableSource`.
        path: Of the shards, for messages.
        targets: As for `ssl_toolkit.data.table.read_table`.
        covariates: As for `ssl_toolkit.data.table.read_table`.

    Attributes:
        num_without_row: How many images of the shards have no row, and are left out.

    Raises:
        ValueError: In one line with the row, if the table cannot be used: a path that names no image or several, a
            split of another name, a group in two splits.
    """

    def __init__(
        self,
        table: Table,
        shards: ShardSource,
        labels: LabelKind,
        path: str,
        targets: Sequence[str] = (),
        covariates: Sequence[str] = (),
    ) -> None:
        place_of = _find(table, shards, plain(path))
        rows = np.argsort(place_of).tolist()
        SubsetSource.__init__(self, shards, place_of[rows])
        self.num_without_row = len(shards) - len(rows)
        self._annotate(table, rows, targets, covariates)
        if "label" not in table.values and labels == "folder":
            kept = np.zeros(len(shards), dtype=bool)
            kept[self.places] = True
            names = [member for (_, member), keep in zip(shards.members(), kept.tolist(), strict=True) if keep]
            self.class_names, self._labels = label_by_folder(plain(path), names)

    def summary(self) -> str:
        """What was taken from the table, and how many images have no row, for people."""
        rest = f"; left out, without a row: {counted(self.num_without_row, 'images')}" if self.num_without_row else ""
        return f"{super().summary()}{rest}"

    def label(self, index: int) -> int:
        return super().label(index) if self._labels is None else int(self._labels[index])

    def labels(self) -> NDArray[np.int64]:
        return super().labels() if self._labels is None else self._labels


def _find(table: Table, shards: ShardSource, path: str) -> NDArray[np.int64]:
    """The place in the shards of the image of each row: int64 array ``[rows]``."""
    wanted: dict[str, list[int]] = {}
    for row, text in enumerate(table.values["path"]):
        wanted.setdefault(printable(text), []).append(row)
    found: dict[int, list[int]] = {}
    # the whole name before a shorter one, which may be that of several images
    for name_of in (_with_shard, _alone, _without_ending, _of_sample):
        left = {text: rows for text, rows in wanted.items() if rows[0] not in found}
        for place, (shard, member) in enumerate(shards.members() if left else ()):
            for row in left.get(name_of(shard, member), ()):
                found.setdefault(row, []).append(place)
    places = np.full(len(table.rows), -1, dtype=np.int64)
    for row, candidates in sorted(found.items()):
        if len(candidates) > 1:
            shown = ", ".join(shards.name(place) for place in candidates[:_SHOWN]) + ", ..." * (
                len(candidates) > _SHOWN
            )
            raise ValueError(
                f"the table '{table.file}' has the path {table.values['path'][row]} in row {table.rows[row]:,}, which "
                f"is the name of {len(candidates):,} images in '{path}' ({shown}); write the shard before it, as there"
            )
        places[row] = candidates[0]
    _check_found(table, places, path)
    _check_once(table, places, shards)
    return places


def _with_shard(shard: str, member: str) -> str:
    return _normal(f"{shard}/{member}")


def _alone(shard: str, member: str) -> str:
    return _normal(member)


def _without_ending(shard: str, member: str) -> str:
    folder, slash, base = _normal(member).rpartition("/")
    return f"{folder}{slash}{base.rpartition('.')[0] or base}"


def _of_sample(shard: str, member: str) -> str:
    folder, slash, base = _normal(member).rpartition("/")
    return f"{folder}{slash}{base.partition('.')[0]}"


def _normal(name: str) -> str:
    """As a table's paths are: ten million names take long, and hardly one has anything to be changed."""
    if "//" in name or "./" in name:
        name = posixpath.normpath(name)
    return name if name.isprintable() else printable(name)


def _check_found(table: Table, places: NDArray[np.int64], path: str) -> None:
    missing = np.flatnonzero(places < 0).tolist()
    if not missing:
        return
    shown = ", ".join(f"row {table.rows[row]:,}: {table.values['path'][row]}" for row in missing[:_SHOWN])
    raise ValueError(
        f"the table '{table.file}' names {counted(len(missing), 'images')} of {len(places):,} that "
        f"{'is' if len(missing) == 1 else 'are'} not in '{path}' ({shown}{', ...' * (len(missing) > _SHOWN)}); a path "
        "is the name of an image in its shard, or that with the shard before it, as SHARD.tar/NAME.jpg"
    )


def _check_once(table: Table, places: NDArray[np.int64], shards: ShardSource) -> None:
    """Refuses two names of one image; that of one name has been refused before."""
    order = np.argsort(places, kind="stable")
    twice = np.flatnonzero(places[order][1:] == places[order][:-1])
    if len(twice):
        first, second = order[twice[0]], order[twice[0] + 1]
        raise ValueError(
            f"the table '{table.file}' has the image {shards.name(int(places[first]))} in row {table.rows[first]:,} "
            f"and in row {table.rows[second]:,}"
        )
