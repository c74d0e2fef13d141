"""Survey of training images before they are decoded: the range of their numbers, and pages that are not read."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from ssl_toolkit.data.decode import DECODING, BadImage, Contents, look_at
from ssl_toolkit.data.decode_pool import ReadingThreads, reading
from ssl_toolkit.data.deep import FULL, Extremes, Range, common_range
from ssl_toolkit.data.sources import Source
from ssl_toolkit.errors import counted, nearest
from ssl_toolkit.io.atomic import write_atomically

RangeOption = Literal["auto", "full", "header"] | tuple[float, float] | dict[str, tuple[float, float]]

MOST = 64
"""So many images are looked at."""


class Survey(NamedTuple):
    """What the images looked at hold.

    Attributes:
        ranges: For each kind of numbers of more than 8 bits those that become black and white.
        found: The kinds that there are, each with what is to be said of it.
        pages: Pages after the first in those that have several.
        num_paged: How many have several.
        num: How many were looked at.
    """

    ranges: dict[str, Range]
    found: dict[str, str]
    pages: int
    num_paged: int
    num: int

    def remarks(self) -> list[str]:
        """What is to be said of it."""
        said = list(self.found.values())
        if self.pages:
            said.append(
                f"not read: {counted(self.pages, 'pages')} after the first, in {self.num_paged} of "
                f"{counted(self.num, 'files')} looked at"
            )
        return said


def survey(
    source: Source,
    indices: NDArray[np.int64],
    option: RangeOption,
    num_threads: int,
    timeout: float,
    folder: Path | None = None,
) -> Survey:
    """Looks at some of the training images.

    Args:
        source: Of the images.
        indices: Those of the training split.
        option: As `ImageData` takes it.
        num_threads: That look.
        timeout: Seconds that reading one image may take.
        folder: Where what was found is kept, if images lie together, so that to look again would fetch a shard.

    Raises:
        RunFailed: Reading an image does not end.
    """
    groups = source.groups()
    if groups is None or folder is None or not len(indices):
        chosen = indices[np.linspace(0, max(0, len(indices) - 1), min(MOST, len(indices))).astype(int)]
        return _summed_up(_look_at_all(source, chosen, num_threads, timeout), option)
    of = groups.of[indices]
    chosen = indices[of == of[0]][:MOST]
    key = f"{DECODING}\n{source.fingerprint()}\n{chosen.tolist()}"
    file = folder / f"{hashlib.blake2b(key.encode(), digest_size=16).hexdigest()}.survey"
    looked = _kept(file)
    if looked is None:
        looked = _look_at_all(source, chosen, num_threads, timeout)
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(file, json.dumps(looked))
    return _summed_up(looked, option)


def _look_at_all(source: Source, indices: NDArray[np.int64], num_threads: int, timeout: float) -> list[Contents]:
    with ReadingThreads(num_threads, timeout) as pool:
        waiting = [pool.submit(_look, source, int(index)) for index in indices]
        return [contents for future in waiting if (contents := pool.result(future)) is not None]


def _kept(file: Path) -> list[Contents] | None:
    """What was found before; None if nothing is there that can be read."""
    try:
        looked = json.loads(file.read_text(encoding="utf-8"))
        return [Contents(found and Extremes(*found), int(pages)) for found, pages in looked]
    except (OSError, ValueError, TypeError):
        return None


def _summed_up(looked: Sequence[Contents], option: RangeOption) -> Survey:
    kinds: dict[str, list[Extremes]] = {}
    for contents in looked:
        if contents.extremes is not None:
            kinds.setdefault(contents.extremes.kind, []).append(contents.extremes)
    ranges = {kind: _range(found, option) for kind, found in sorted(kinds.items())}
    said = {kind: _remark(kind, kinds[kind], chosen) for kind, chosen in ranges.items()}
    if isinstance(option, Mapping):
        ranges = {**option, **ranges}
    elif not isinstance(option, str):
        ranges = {**dict.fromkeys(FULL, (option[0], option[1])), **ranges}
    pages = [contents.further_pages for contents in looked if contents.further_pages]
    return Survey(ranges, said, sum(pages), len(pages), len(looked))


def check_range(option: RangeOption) -> None:
    """Raises a ValueError for a range that is none."""
    if isinstance(option, str):
        choices = get_args(get_args(RangeOption)[0])
        if option not in choices:
            raise ValueError(
                f"data.range must be {', '.join(choices)} or [low, high], got {option!r}{nearest(option, choices)}"
            )
        return
    if isinstance(option, Mapping):
        unknown = next((kind for kind in option if kind not in FULL), None)
        if unknown is not None:
            raise ValueError(
                f"data.range names {unknown!r}, which is none of {', '.join(FULL)}{nearest(unknown, FULL)}"
            )
    for pair in option.values() if isinstance(option, Mapping) else [option]:
        if not _is_range(pair):
            raise ValueError(f"data.range must be [low, high] with low below high, got {pair!r}")


def range_in(header: Mapping[str, Any] | None) -> RangeOption:
    """The range of the run that a weights file comes from, by its header; "auto" if it says none.

    Raises:
        ValueError: What it says is no range.
    """
    config = (header or {}).get("config")
    data = config.get("data") if isinstance(config, Mapping) else None
    found = data.get("range", "auto") if isinstance(data, Mapping) else "auto"
    check_range(found)
    return found


def _is_range(pair: Any) -> bool:
    is_pair = isinstance(pair, list | tuple) and len(pair) == 2
    return is_pair and all(isinstance(each, int | float) for each in pair) and -np.inf < pair[0] < pair[1] < np.inf


def _look(source: Source, index: int) -> Contents | None:
    reading(source, index)
    try:
        file = source.file(index)
        return None if file is None else look_at(file, source.name(index))
    except (BadImage, OSError, MemoryError):
        return None  # to be named when it is decoded


def _range(found: Sequence[Extremes], option: RangeOption) -> Range:
    kind = found[0].kind
    if option == "full" or kind == "int8":
        return FULL[kind]
    if option == "header":
        return common_range(found) if all(each.header or each.bits for each in found) else FULL[kind]
    if isinstance(option, Mapping) and kind in option:
        return option[kind]
    if isinstance(option, tuple | list):
        return option[0], option[1]
    return common_range(found)


def _remark(kind: str, found: Sequence[Extremes], chosen: Range) -> str:
    high = max(each.high for each in found)
    is_counted = kind.startswith("uint") and np.isfinite(high)
    bits = f", {max(1, int(high).bit_length())} bits used" if is_counted else ""
    low, high = (f"{value:,.6g}" if value % 1 else f"{value:,.0f}" for value in chosen)
    return f"{kind}{bits}: range {low} to {high}"
