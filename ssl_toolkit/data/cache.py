"""Cache of decoded images: in memory, on disk or none; each image is decoded once."""

from __future__ import annotations

import errno
import hashlib
import io
import math
import os
import shutil
from pathlib import Path
from typing import Literal

import numpy as np
import PIL

from ssl_toolkit.data.bad_files import BadFiles
from ssl_toolkit.data.cache_file import MAGIC, read_images, write_images
from ssl_toolkit.data.decode import DECODING, BadImage
from ssl_toolkit.data.decode_pool import READ_TIMEOUT, ReadingThreads
from ssl_toolkit.data.reading import Decoded, read_many
from ssl_toolkit.data.sources import Source
from ssl_toolkit.data.store import DecodedStore, DecodingStore, Store

CacheKind = Literal["auto", "disk", "memory", "none"]

_MAX_MEMORY = 1 << 30
_MAX_DISK = 20 << 30


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
    read_timeout: float = READ_TIMEOUT,
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
        read_timeout: Seconds that reading one image may take.

    Raises:
        ValueError: Too many bad images, or the file cannot be written.
        RunFailed: Reading an image does not end.
    """
    folder = cache_dir or default_cache_dir()
    key = "\n".join([MAGIC.decode(), f"{DECODING} {PIL.__version__}", settings, str(channels), source.fingerprint()])
    path = folder / f"{hashlib.blake2b(key.encode(), digest_size=16).hexdigest()}.images"
    if cache in ("auto", "disk"):
        store = read_images(path, channels, bad)
        if store is not None:
            return store
    expected = 0
    if cache != "none":
        with ReadingThreads(num_threads, read_timeout) as pool:
            expected = _expected_bytes(source, channels, pool)
    if cache == "auto":
        cache = _choose(expected, folder)
    if cache == "none":
        return DecodingStore(source, channels, num_threads, bad, read_timeout)
    what = f"decoding images, {_size(expected)} in {cache}"
    decoded = Decoded(source, channels, num_threads, read_timeout, what, progress)
    if cache == "memory":
        buffer = io.BytesIO()
        sizes = np.zeros((len(source), 2), dtype=np.int64)
        for _ in decoded.write(buffer, sizes, bad):
            pass
        return DecodedStore(np.frombuffer(buffer.getbuffer(), dtype=np.uint8), sizes, channels, bad)
    try:
        _check_room(expected, folder)
        write_images(path, decoded, bad)
    except OSError as error:
        raise ValueError(
            f"cannot write the decoded images to '{folder}': {error.strerror}; set data.cache_dir to a folder with "
            "room for them, or data.cache: none"
        ) from error
    store = read_images(path, channels, bad)
    if store is None:
        raise ValueError(
            f"'{path}' is damaged again as soon as it is written; set data.cache_dir to another folder, or data.cache: "
            "none"
        )
    return store


def _expected_bytes(source: Source, channels: int, pool: ReadingThreads) -> int:
    """What the decoded images will take, from up to 32 of them."""
    results = read_many(source, source.examples(32), channels, pool, chunk=8)
    lengths = [result.size for result in results if not isinstance(result, BadImage)]
    return round(len(source) * sum(lengths) / len(lengths)) if lengths else 0


def _choose(expected: int, folder: Path) -> CacheKind:
    """Where so many bytes fit."""
    if expected < _MAX_MEMORY:
        return "memory"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        fits = expected < _MAX_DISK and expected < shutil.disk_usage(folder).free / 2
        writable = os.access(folder, os.W_OK)
    except OSError:
        fits = writable = False
    return "disk" if fits and writable else "none"


def _check_room(expected: int, folder: Path) -> None:
    """Raises an OSError before the work if the disk cannot hold what comes of it."""
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if expected > free:
        raise OSError(errno.ENOSPC, f"they take about {_size(expected)}, and {_size(free)} are free")


def _size(num_bytes: float) -> str:
    """As ``426 MB``."""
    step = min(4, max(0, int(math.log10(num_bytes) // 3))) if num_bytes else 0
    return f"{num_bytes / 1000**step:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[step]}"
