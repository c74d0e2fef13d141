"""Description of a sharded checkpoint's tensors: compared with its files before memory is taken for any of them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import torch

from ssl_toolkit.io.schema import ANYTHING, COUNT, TEXT, Each, Kind, problems, shown

_DTYPE = Kind("a type of numbers", lambda value: isinstance(value, torch.dtype))
_COUNTS = Kind("counts", lambda value: isinstance(value, list) and all(map(COUNT.fits, value)))
_SHARD = Kind(
    "a shard (where it begins, its size, its file, and where in it)",
    lambda value: (
        isinstance(value, list)
        and len(value) == 5
        and all(map(_COUNTS.fits, value[:2]))
        and TEXT.fits(value[2])
        and all(map(COUNT.fits, value[3:]))
    ),
)
DESCRIPTION = {
    "checkpoint": {"state_dict": Each(ANYTHING), "optimizer_states": [{"state": Each(Each(ANYTHING))}]},
    "names": [[TEXT]],
    "tensors": Each({"dtype": _DTYPE, "size": _COUNTS, "parts": [_SHARD]}),
}
"""What the file of everything but the tensors holds."""


def check_description(rest: Any, path: Path) -> None:
    """Raises a ValueError for tensors whose shards are not in the files, or are not all of them.

    Args:
        rest: As it was loaded.
        path: The folder of the checkpoint.
    """
    found = next(problems(rest, DESCRIPTION), None)
    for key, each in {} if found else rest["tensors"].items():
        found = found or next((f"tensor {shown(key)} {problem}" for problem in _faults(each, path)), None)
    if found:
        raise ValueError(found)


def _faults(tensor: dict[str, Any], path: Path) -> Iterator[str]:
    size, shards = tensor["size"], tensor["parts"]
    for begin, extent, file, start, length in shards:
        if Path(file).name != file:
            yield f"lies in {shown(file)}, which is outside of the checkpoint"
        elif not (path / file).is_file() or start + length > (path / file).stat().st_size:
            yield f"lies in {shown(file)}, which has no such bytes"
        elif len(begin) != len(size) or len(extent) != len(size):
            yield "has shards of other dimensions"
        elif any(first + many > whole for first, many, whole in zip(begin, extent, size, strict=True)):
            yield "has a shard beyond its end"
        elif math.prod(extent) * tensor["dtype"].itemsize > length:
            yield f"has more numbers than {shown(file)} has bytes for it"
    # what no shard fills would be whatever lay in memory
    if sum(math.prod(extent) for _, extent, *_ in shards) != math.prod(size) or any(
        all(a < b + n and b < a + m for a, m, b, n in zip(one[0], one[1], other[0], other[1], strict=True))
        for one, other in combinations([shard for shard in shards if math.prod(shard[1])], 2)
    ):
        yield "is not the whole of its shards"
