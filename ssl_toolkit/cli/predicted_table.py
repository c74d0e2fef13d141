"""The table of ``predict``: which images, pairs or parts of sequences are predicted."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import Namespace

from ssl_toolkit.cli.features import say_line
from ssl_toolkit.data.frames import FrameData
from ssl_toolkit.distributed.ranks import is_rank_zero
from ssl_toolkit.errors import nearest

TABLE = "table"
OF_TABLE = (TABLE, "columns")
_PARTS = ("start", "end")
# what else a table may hold only a training needs
_ROLES = ("path", "second", *_PARTS)


def columns_of(data_class: type, own: Namespace, given: Namespace) -> dict[str, str]:
    """The columns of the table that are read, by what they are for: the run's, or those given in their place.

    Args:
        data_class: Of the run's images.
        own: Its settings of them.
        given: The settings of the images that are predicted.

    Raises:
        ValueError: A column is given for what is not read.
    """
    # frames are labelled with all of their sequence around them
    in_parts = issubclass(data_class, FrameData) and not own.get("frame_labels")
    roles = _ROLES if in_parts else _ROLES[:1]
    chosen = given.get("columns") or {}
    for role in chosen:
        if role not in roles:
            raise ValueError(
                f"--data.columns.{role}: predict reads {', '.join(roles)} of a table, and nothing else: leave it out"
                f"{nearest(role, roles)}"
            )
    return {**{role: name for role, name in (own.get("columns") or {}).items() if role in roles}, **chosen}


def pairs_in_folder(run: Path, columns: dict[str, str], given: Namespace) -> bool:
    """Whether a run is of pairs of images, so that a folder has to hold such.

    Args:
        run: Its folder.
        columns: As `columns_of` says them.
        given: The settings of the images that are predicted, without a table.

    Raises:
        ValueError: It is, and there is no folder either.
    """
    if "second" not in columns:
        return False
    if given.get("path") is None:
        raise ValueError(
            f"{run} is a run of pairs of images: give --data.table TABLE with the columns "
            f"{columns.get('path', 'path')} and {columns['second']}"
        )
    return True


def tell_of_parts(own: Namespace, given: Namespace) -> None:
    """Says where a run was trained on parts of sequences, and whole ones are predicted.

    Args:
        own: The run's settings of its sequences.
        given: Those of the sequences that are predicted.
    """
    in_parts = any(role in (own.get("columns") or {}) for role in _PARTS) and not own.get("frame_labels")
    if in_parts and given.get(TABLE) is None and is_rank_zero():
        say_line("the run is of parts of sequences, and these are whole ones: --data.table TABLE names parts of them")
