"""Part files: a table as a Parquet data set in a folder, which processes write together and a killed one continues."""

from __future__ import annotations

import hashlib
import json
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ssl_toolkit.data.divided import DividedData
from ssl_toolkit.data.splits import SourceImages
from ssl_toolkit.distributed.ranks import launched
from ssl_toolkit.errors import counted, printable
from ssl_toolkit.evaluation.features import chosen_device
from ssl_toolkit.evaluation.progress import Steps
from ssl_toolkit.io.atomic import atomic_file, write_atomically
from ssl_toolkit.io.schema import shown
from ssl_toolkit.run_folder import BAD_FILES, bad_file_lines

if TYPE_CHECKING:
    import pyarrow as pa

PART_SIZE = 10_000
# readers of a data set leave out names that begin so
ABOUT = "_about.json"
BAD = f"_{BAD_FILES}"
_KEY, _BAD_KEY, _NUM_KEY = b"ssl_toolkit", b"ssl_toolkit_bad_files", b"ssl_toolkit_num_samples"
# what made a table, but may be another path to the same
_PATHS = ("run", "weights")
_WORDS = {
    "command": "the command", "sha256": "weights of SHA-256", "images": "images of digest",
    "part_size": "--part_size", "batch_size": "--data.batch_size", "precision": "--precision",
    "covariates_sha256": "covariates of SHA-256",
}  # fmt: skip


class Part(NamedTuple):
    """A part: the images of a range of a source.

    Attributes:
        number: Of the part.
        source: Number of the source.
        start: The first image.
        stop: The one after the last.
    """

    number: int
    source: int
    start: int
    stop: int


class Written(NamedTuple):
    """What is there of a table in parts.

    Attributes:
        folder: Where.
        num_parts: How many parts there will be.
        there: How many are there; the others may be in work in other processes.
        rows: Rows of all parts; None while some are missing.
        bad: Images without a row, likewise.
    """

    folder: Path
    num_parts: int
    there: int
    rows: int | None = None
    bad: int | None = None

    def words(self) -> str:
        """This, in a line."""
        if self.rows is None:
            missing = self.num_parts - self.there
            return f"{self.folder} ({self.there:,} of {self.num_parts:,} parts; {missing:,} left to other processes)"
        text = f"{self.folder} ({counted(self.num_parts, 'parts')}, {counted(self.rows, 'rows')})"
        return f"{text}\nunreadable files left out: {self.bad}, listed in {self.folder / BAD}" if self.bad else text


Rows = Callable[[SourceImages, NDArray[np.int64]], tuple[Mapping[str, Any], NDArray[np.int64]]]


class PartFolder:
    """A table as part files in a folder.

    The images are divided into parts by fixed ranges of their numbers in the source. Process ``r`` of ``W`` writes the
    parts whose number leaves the rest ``r``; each appears whole or not at all, with the images that have no row in its
    metadata. One that is there is not computed again, so that the same command goes on with what is missing, with any
    number of processes. Processes need not be connected. `_about.json` says what made the table; what differs from it
    is refused.

    Args:
        out: The folder; made if it is missing.
        data: The images, found and divided.
        sources: All of them.
        schema: Of the columns.
        about: What made the table, plain data.
        part_size: Images in a part; None for 10,000.

    Raises:
        ValueError: The folder holds something else, or what was made in another way.
    """

    def __init__(
        self,
        out: Path,
        data: DividedData,
        sources: list[SourceImages],
        schema: pa.Schema,
        about: Mapping[str, Any],
        part_size: int | None = None,
    ) -> None:
        self._out = out
        self._data = data
        self._sources = sources
        self._schema = schema
        size = PART_SIZE if part_size is None else part_size
        self.parts = list(_parts([len(source.splits) for source in sources], size))
        facts = {
            **about,
            "batch_size": data.batch_size,
            "images": _digest(sources),
            "num_images": sum(int((source.splits >= 0).sum()) for source in sources),
            "part_size": size,
            "num_parts": len(self.parts),
        }
        self._about = _begin(out, json.loads(json.dumps(facts)))
        self._metadata = json.dumps(self._about).encode()
        width = max(5, len(str(len(self.parts) - 1)))
        self._files = [out / f"part-{part.number:0{width}d}.parquet" for part in self.parts]

    def missing(self) -> list[Part]:
        """The parts of this process that are not there.

        Raises:
            ValueError: A part is damaged, or of another table.
        """
        rank, world_size, _ = launched()
        mine = self.parts[rank::world_size]
        return [part for part in mine if not self._files[part.number].exists() or self._checked(part) is None]

    def places(self, part: Part) -> NDArray[np.int64]:
        """Sorted int64 array: the images of a part, by their place in its source."""
        return part.start + np.flatnonzero(self._sources[part.source].splits[part.start : part.stop] >= 0)

    def write(self, rows: Rows, what: str, steps: Steps) -> None:
        """Writes the parts of this process that are missing.

        Args:
            rows: Makes the columns of some places of a source, at least one, and says of which of the places, in
                order, there are rows.
            what: Is computed, for the lines on how far it is.
            steps: Told of it.

        Raises:
            ValueError: A part that is there is damaged, or of another table; or all are there, and more images than
                ``data.max_bad`` have no row.
            RuntimeError: An image has no row, though it is not known to be bad.
        """
        missing = self.missing()
        steps.begin(f"{what} of the {self._data.noun}", sum(len(self.places(part)) for part in missing))
        for part in missing:
            self._write_part(part, rows)
        steps(self._finish().words())

    def _write_part(self, part: Part, rows: Rows) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        source, places = self._sources[part.source], self.places(part)
        table, found = self._schema.empty_table(), places[:0]
        if len(places):
            columns, found = rows(source, places)
            table = pa.table(dict(columns), schema=self._schema)
        known = source.images.store.bad.found
        without = [known.get(place) for place in np.setdiff1d(places, found).tolist()]
        reasons = [[error.path, error.reason] for error in without if error is not None]
        if len(found) + len(reasons) != len(places) or not np.array_equal(found, np.unique(found)):
            raise RuntimeError(f"{self._files[part.number].name}: its rows are not those of its images")
        about = {_KEY: self._metadata, _BAD_KEY: json.dumps(reasons).encode()}
        if table.num_rows != len(found):
            about[_NUM_KEY] = str(len(found)).encode()  # sequences with several rows each
        table = table.replace_schema_metadata(about)
        with atomic_file(self._files[part.number]) as file:
            pq.write_table(table, file)

    def _finish(self) -> Written:
        """Looks at what all processes have written; when all parts are there, lists the images without a row."""
        there = sum(file.exists() for file in self._files)
        if there < len(self.parts):
            return Written(self._out, len(self.parts), there)
        rows, bad = 0, []
        for part in self.parts:
            num, without = self._checked(part) or (0, [])
            rows += num
            bad += without
        if bad:
            lines = bad_file_lines((path, reason) for path, reason in bad)
            write_atomically(self._out / BAD, "".join(f"{line}\n" for line in lines))
        for orphan in self._out.glob(".part-*.partial"):
            orphan.unlink(missing_ok=True)  # of processes that were killed
        num = self._about["num_images"]
        if len(bad) > self._data.max_bad * num or not rows:
            raise ValueError(
                f"{len(bad):,} of {counted(num, self._data.noun)} cannot be decoded, more than data.max_bad = "
                f"{self._data.max_bad:g} allows; they are listed in '{self._out / BAD}'"
            )
        return Written(self._out, len(self.parts), there, rows, len(bad))

    def _checked(self, part: Part) -> tuple[int, list[list[str]]] | None:
        """How many rows a part that is there has, and the images without one; None if it is gone."""
        import pyarrow.parquet as pq

        file = self._files[part.number]
        try:
            found = pq.read_metadata(file)
            metadata = found.metadata or {}
            bad = json.loads(metadata.get(_BAD_KEY, b"[]"))
            num = int(metadata.get(_NUM_KEY, found.num_rows))
        except FileNotFoundError:
            return None
        except (ValueError, OSError):
            raise ValueError(f"'{file}' is damaged; remove it, and the same command writes it again") from None
        if metadata.get(_KEY) != self._metadata or num + len(bad) != len(self.places(part)):
            raise ValueError(
                f"'{file}' is of another table; remove it, and the same command writes that of '{self._out / ABOUT}'"
            )
        return found.num_rows, bad


def device_of(name: str | None) -> torch.device:
    """As `chosen_device`; of several GPUs each process of this machine takes one."""
    device = chosen_device(name)
    if launched().world_size > 1 and name in (None, "cuda") and device.type == "cuda":
        return chosen_device(f"cuda:{launched().local_rank % torch.cuda.device_count()}")
    return device


def _parts(sizes: list[int], part_size: int) -> Iterator[Part]:
    number = 0
    for source, num in enumerate(sizes):
        for start in range(0, num, part_size):
            yield Part(number, source, start, min(num, start + part_size))
            number += 1


def _digest(sources: list[SourceImages]) -> str:
    """Of names, sizes, splits and labels of all images; of all that they depend on, where they have no size."""
    digest = hashlib.blake2b(digest_size=16)
    for images, splits in sources:
        source = images.source
        sizes = source.sizes()
        if not (sizes >= 0).any():
            digest.update(source.fingerprint().encode())
        for place, size in enumerate(sizes.tolist()):
            digest.update(f"{source.name(place)}\0{size}\n".encode())
        digest.update(splits.tobytes())
        digest.update(images.labels.numpy().tobytes())
    return digest.hexdigest()


def _begin(out: Path, about: dict[str, Any]) -> dict[str, Any]:
    """Begins the folder, or goes on with one of the same; what its `ABOUT` holds."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"'{out}' is a file, expected a folder of part files, or one that does not exist")
    out.mkdir(parents=True, exist_ok=True)
    names = {file.name for file in out.iterdir() if not file.name.startswith(".")}
    if ABOUT not in names:
        if names:
            raise ValueError(
                f"'{out}' holds {printable(min(names))} and no {ABOUT}, so it is no table in parts; give another folder"
            )
        _write_unless_there(out / ABOUT, json.dumps(about, indent=2) + "\n")
    try:
        found = json.loads((out / ABOUT).read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError
    except ValueError:
        raise ValueError(f"'{out / ABOUT}' is damaged; give another folder") from None
    for key in dict.fromkeys([*about, *found]):
        then, now = found.get(key), about.get(key)
        if key not in _PATHS and then != now:
            what = _WORDS.get(key, key)
            both = f"{what} {shown(then)}, now it is {shown(now)}" if shown(then) != shown(now) else f"other {what}"
            raise ValueError(f"'{out}' was begun with {both}; go on as it was begun, or give another folder")
    return found


def _write_unless_there(file: Path, text: str) -> None:
    """Of several processes that write it, the first does."""
    own = file.with_name(f".{file.name}.{socket.gethostname()}-{os.getpid()}.partial")
    write_atomically(own, text)
    try:
        os.link(own, file)
    except FileExistsError:
        pass
    except OSError:  # a file system without links
        own.replace(file)
    own.unlink(missing_ok=True)
