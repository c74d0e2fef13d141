"""Builds the store of the decoded images: decides where they go, decodes them once, writes and reads the file.

The file is: the images, each ``[channels, height, width]`` as bytes; the sizes, int64 ``[num, 2]``; a JSON text with
the bad images; the lengths of these three parts as int64; eight bytes that name the format. It is written beside its
final place and renamed when complete, so a file under its final name is whole, and of two processes that build the
same one the later wins.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Literal

import numpy as np
import PIL
from numpy.typing import NDArray

from ssl_toolkit.data.decode import BadImage
from ssl_toolkit.data.reading import BadFiles, read_many, say, show_progress
from ssl_toolkit.data.sources import Source
from ssl_toolkit.data.store import DecodedStore, DecodingStore, Store

CacheKind = Literal["auto", "disk", "memory", "none"]

_MAGIC = b"SSLTKIM1"
_MAX_MEMORY = 1 << 30
_MAX_DISK = 20 << 30
_STALE_SECONDS = 3600


def default_cache_dir() -> Path:
    """``$XDG_CACHE_HOME/ssl-toolkit``, or ``~/.cache/ssl-toolkit``."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "ssl-toolkit"


def open_store(
    source: Source,
    bad: BadFiles,
    *,
    settings: str,
    channels: int,
    num_threads: int,
    cache: CacheKind = "auto",
    cache_dir: Path | None = None,
    progress: bool = True,
) -> Store:
    """The store of a source's images, built or found.

    Args:
        source: The images.
        bad: Where bad images are noted; its rules apply.
        settings: All that the decoded images depend on beside the source.
        channels: Of every image.
        num_threads: For decoding.
        cache: "memory", "disk", "none" (decode at every use) or "auto": a file that is there already; else memory up
            to 1 GiB of decoded images, disk up to 20 GiB if half of the free space is enough, and none beyond.
        cache_dir: Folder of the files; `default_cache_dir` by default.
        progress: Whether to show a progress bar when decoding takes long.

    Raises:
        ValueError: Too many bad images, or the file cannot be written.
    """
    folder = cache_dir or default_cache_dir()
    key = "\n".join([_MAGIC.decode(), PIL.__version__, settings, str(channels), source.fingerprint()])
    path = folder / f"{hashlib.blake2b(key.encode(), digest_size=16).hexdigest()}.images"
    if cache in ("auto", "disk"):
        store = _read_file(path, channels, bad)
        if store is not None:
            return store
    if cache == "auto":
        cache = _choose(source, folder, channels)
    if cache == "none":
        return DecodingStore(source, channels, num_threads, bad)
    if cache == "memory":
        buffer = io.BytesIO()
        sizes = _decode_all(source, buffer, channels, num_threads, bad, progress)
        return DecodedStore(np.frombuffer(buffer.getbuffer(), dtype=np.uint8), sizes, channels, bad)
    try:
        _write_file(path, source, channels, num_threads, bad, progress)
    except OSError as error:
        raise ValueError(
            f"cannot write the decoded images to '{folder}': {error.strerror}; set data.cache_dir to a folder with "
            "room for them, or data.cache: none"
        ) from error
    store = _read_file(path, channels, bad)
    assert store is not None
    return store


def _choose(source: Source, folder: Path, channels: int) -> CacheKind:
    """Where the decoded images fit, from the size of up to 32 of them."""
    sample = np.linspace(0, len(source) - 1, min(32, len(source))).astype(int).tolist()
    lengths = [result.size for result in source.read_many(sample) if not isinstance(result, BadImage)]
    expected = len(source) * (sum(lengths) / len(lengths) if lengths else 0)
    if expected < _MAX_MEMORY:
        return "memory"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        fits = expected < _MAX_DISK and expected < shutil.disk_usage(folder).free / 2
        writable = os.access(folder, os.W_OK)
    except OSError:
        fits = writable = False
    return "disk" if fits and writable else "none"


def _decode_all(
    source: Source, file: IO[bytes], channels: int, num_threads: int, bad: BadFiles, progress: bool
) -> NDArray[np.int64]:
    """Writes all images one after the other and returns their sizes."""
    sizes = np.zeros((len(source), 2), dtype=np.int64)
    with ThreadPoolExecutor(num_threads, thread_name_prefix="decode") as pool:
        results = read_many(source, range(len(source)), channels, pool, chunk=32)
        with contextlib.closing(results):
            for index, result in enumerate(show_progress(results, len(source), "decoding images", progress)):
                if isinstance(result, BadImage):
                    bad.saw(index, result)
                else:
                    bad.saw(index)
                    sizes[index] = result.shape[1:]
                    file.write(result.data)
    bad.check()
    return sizes


def _write_file(path: Path, source: Source, channels: int, num_threads: int, bad: BadFiles, progress: bool) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(path.parent)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".tmp")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            sizes = _decode_all(source, file, channels, num_threads, bad, progress)
            entries = [[index, error.path, error.reason] for index, error in bad.found.items()]
            table, text = sizes.astype("<i8").tobytes(), json.dumps(entries).encode()
            lengths = np.array([file.tell(), len(table), len(text)], dtype="<i8").tobytes()
            file.write(table + text + lengths + _MAGIC)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _remove_stale(folder: Path) -> None:
    """Deletes what a killed process left behind; a file that is being written has changed within the hour."""
    for path in folder.glob("*.tmp"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > _STALE_SECONDS:
                path.unlink()


def _read_file(path: Path, channels: int, bad: BadFiles) -> DecodedStore | None:
    """The store in a file; None if there is no file or it is damaged."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        total = path.stat().st_size
        end = total - 24 - len(_MAGIC)
        file.seek(max(0, end))
        lengths, magic = np.frombuffer(file.read(24), dtype="<i8"), file.read()
        if end < 0 or magic != _MAGIC or lengths.sum() != end:
            say(f"the cache file '{path}' is damaged; decoding the images again")
            return None
        num_bytes, table_length, text_length = (int(length) for length in lengths)
        file.seek(num_bytes)
        sizes = np.frombuffer(file.read(table_length), dtype="<i8").astype(np.int64).reshape(-1, 2)
        entries = json.loads(file.read(text_length))
    for index in range(len(sizes)):
        bad.saw(index)
    for index, name, reason in entries:
        bad.saw(index, BadImage(name, reason))
    bad.check()
    data = np.memmap(path, dtype=np.uint8, mode="r", shape=(num_bytes,)) if num_bytes else np.zeros(0, np.uint8)
    return DecodedStore(data.view(np.ndarray), sizes, channels, bad)
