"""Cache file of decoded images: made once, by one process; the next run continues a file that was not finished.

The file is: the images, each ``[channels, height, width]`` as bytes; the sizes, int64 ``[num, 2]``; a JSON text with
the bad images; the lengths of these three parts as int64; eight bytes that name the format.

While it is made, its name ends in ``.partial`` and holds images only; a journal beside it tells, line by line, which
of them have reached the disk. It is renamed when complete, so a file under its final name is whole.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from ssl_toolkit.data.bad_files import BadFiles
from ssl_toolkit.data.console import say
from ssl_toolkit.data.decode import BadImage
from ssl_toolkit.data.reading import Decoded
from ssl_toolkit.data.store import DecodedStore

MAGIC = b"SSLTKIM1"

_SAVE_EVERY_BYTES = 1 << 26
_STALE_SECONDS = 7 * 24 * 3600


def write_images(path: Path, decoded: Decoded, bad: BadFiles) -> None:
    """Makes the file, unless another process is making it: then waits for that.

    Args:
        path: Where.
        decoded: The images.
        bad: Where bad images are noted; its rules apply.

    Raises:
        ValueError: Too many bad images.
        OSError: The file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(path.parent)
    lock = FileLock(path.with_suffix(".lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say("another process is decoding these images; waiting for it")
        lock.acquire()
    try:
        if _lengths(path) is None:
            _make(path, decoded, bad)
        # no process that waits for it would begin again now
        Path(lock.lock_file).unlink(missing_ok=True)
    finally:
        lock.release()


def _make(path: Path, decoded: Decoded, bad: BadFiles) -> None:
    images, journal = path.with_suffix(".partial"), path.with_suffix(".journal")
    sizes = np.zeros((len(decoded.source), 2), dtype=np.int64)
    try:
        saved, num_bytes = _go_on(images, journal, sizes, decoded.channels, bad)
        with images.open("r+b" if saved else "wb") as file, journal.open("a") as lines:
            file.truncate(num_bytes)
            file.seek(num_bytes)
            for index in decoded.write(file, sizes, bad, saved):
                if file.tell() - num_bytes >= _SAVE_EVERY_BYTES:
                    _flush(file)
                    lines.write(_line(saved, index + 1, sizes, bad))
                    _flush(lines)
                    saved, num_bytes = index + 1, file.tell()
            entries = [[index, error.path, error.reason] for index, error in sorted(bad.found.items())]
            table, text = sizes.astype("<i8").tobytes(), json.dumps(entries).encode()
            lengths = np.array([file.tell(), len(table), len(text)], dtype="<i8").tobytes()
            file.write(table + text + lengths + MAGIC)
            _flush(file)
        images.replace(path)
        journal.unlink()
    except (ValueError, OSError):
        # what is wrong with the images or the disk has to be mended first; a part is kept for a run that was stopped
        for each in (images, journal):
            each.unlink(missing_ok=True)
        raise


def _go_on(images: Path, journal: Path, sizes: NDArray[np.int64], channels: int, bad: BadFiles) -> tuple[int, int]:
    """Fills in the sizes of the images that are there already.

    Returns:
        The number of these images, and of their bytes.
    """
    num_images = num_bytes = 0
    kept = ""
    if images.is_file() and journal.is_file():
        available = images.stat().st_size
        for line in journal.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
            if not line.endswith("\n"):
                break  # it was cut off while being written
            try:
                part = json.loads(line)
                part_sizes = np.array(part["sizes"], dtype=np.int64).reshape(-1, 2)
                found = {int(index): BadImage(str(name), str(reason)) for index, name, reason in part["bad"]}
            except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
                break  # it is damaged
            part_bytes = int(part_sizes.prod(axis=1).sum()) * channels
            end = num_images + len(part_sizes)
            if part["first"] != num_images or end > len(sizes) or (part_sizes < 0).any():
                break
            if num_bytes + part_bytes > available or not all(num_images <= index < end for index in found):
                break
            sizes[num_images:end] = part_sizes
            bad.saw_all(num_images, end)
            for index, error in found.items():
                bad.saw(index, error)
            num_images = end
            num_bytes += part_bytes
            kept += line
    journal.write_text(kept, encoding="utf-8")  # without what is cut off or claims too much
    if num_images:
        say(f"{num_images:,} of {len(sizes):,} images have been decoded before; going on from there")
    return num_images, num_bytes


def _line(first: int, end: int, sizes: NDArray[np.int64], bad: BadFiles) -> str:
    entries = [[index, error.path, error.reason] for index, error in bad.found.items() if first <= index < end]
    return json.dumps({"first": first, "sizes": sizes[first:end].tolist(), "bad": entries}) + "\n"


def _flush(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def _remove_stale(folder: Path) -> None:
    """Deletes what was begun and not gone on with for a week."""
    for pattern in ("*.partial", "*.journal", "*.lock"):
        for path in folder.glob(pattern):
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime > _STALE_SECONDS:
                    path.unlink()


def read_images(path: Path, channels: int, bad: BadFiles) -> DecodedStore | None:
    """The store in a file; None if there is no file or it is damaged."""
    if not path.is_file():
        return None
    lengths = _lengths(path)
    if lengths is None:
        say(f"the cache file '{path}' is damaged; decoding the images again")
        return None
    num_bytes, table_length, text_length = lengths
    with path.open("rb") as file:
        file.seek(num_bytes)
        table, text = file.read(table_length), file.read(text_length)
    try:
        sizes = np.frombuffer(table, dtype="<i8").astype(np.int64).reshape(-1, 2)
        entries = {int(index): BadImage(str(name), str(reason)) for index, name, reason in json.loads(text)}
        areas = sizes.astype(np.float64).prod(axis=1)  # of damaged sizes an integer would overflow
        whole = len(sizes) == bad.num_images and bool((sizes >= 0).all()) and areas.sum() * channels == num_bytes
        whole = whole and entries.keys() == set(np.flatnonzero(areas == 0).tolist())
    except (ValueError, TypeError, OverflowError, RecursionError):
        whole = False
    if not whole:
        say(f"the cache file '{path}' is damaged; decoding the images again")
        with contextlib.suppress(OSError):  # a folder that cannot be written: whoever writes there will say so
            path.unlink()
        return None
    bad.saw_all(0, len(sizes))
    for index, error in sorted(entries.items()):
        bad.saw(index, error)
    bad.check()
    data = np.memmap(path, dtype=np.uint8, mode="r", shape=(num_bytes,)) if num_bytes else np.zeros(0, np.uint8)
    return DecodedStore(data.view(np.ndarray), sizes, channels, bad)


def _lengths(path: Path) -> tuple[int, int, int] | None:
    """Bytes of the three parts of a file; None if it is not there, or not whole."""
    if not path.is_file():
        return None
    end = path.stat().st_size - 24 - len(MAGIC)
    if end < 0:
        return None
    with path.open("rb") as file:
        file.seek(end)
        lengths, magic = np.frombuffer(file.read(24), dtype="<i8"), file.read()
    images, table, text = (int(length) for length in lengths)
    if magic != MAGIC or images + table + text != end or min(images, table, text) < 0:
        return None
    return images, table, text
