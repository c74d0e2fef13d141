"""`ShardSource`: tar shards as a source of images."""

from __future__ import annotations

import hashlib
import io
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from ssl_toolkit.data.cache import default_cache_dir
from ssl_toolkit.data.console import say
from ssl_toolkit.data.decode import BadImage, decode_file, not_its_fault
from ssl_toolkit.data.order import Groups
from ssl_toolkit.data.shards import remote
from ssl_toolkit.data.shards.index import open_index
from ssl_toolkit.data.shards.labels import Labels, number_labels
from ssl_toolkit.data.shards.local_cache import LocalCache
from ssl_toolkit.data.shards.open_file import OpenFile
from ssl_toolkit.data.shards.prefetch import prefetch
from ssl_toolkit.data.shards.remote import Found, plain
from ssl_toolkit.data.shards.shard import MOST_IMAGE_BYTES
from ssl_toolkit.data.shards.url_patterns import find_shards, short_names
from ssl_toolkit.data.sources import LabelKind, Source
from ssl_toolkit.errors import printable

REMOTE_WINDOW = 16
GB = 10**9
_MOST_OPEN = 256
_LOOKERS = 16


T = TypeVar("T")


class ShardOptions(NamedTuple):
    """How shards are indexed, kept and shuffled; the fields are arguments of `ImageData`.

    Attributes:
        index: Folder of the index; with the cached images by default.
        window: As ``shard_window``.
        cache_gb: As ``shard_cache``.
    """

    index: Path | None = None
    window: int | None = None
    cache_gb: float = 100.0


_AS_USUAL = ShardOptions()


class ShardSource(Source):
    """Images in tar archives, in the order of the archives and of the images in each.

    A sample is the files with one name up to the first dot: ``17.jpg`` is its image, ``17.cls`` its class (a number or
    a name). Images whose names have more dots are samples of their own, unless there is such an image; all other files
    are counted.

    Args:
        path: One shard, a folder of them, a pattern (``train-{000..146}.tar``, ``*.tar``), a text file with one on each
            line, or such an address (``https://``, ``s3://``, ``gs://``, ...).
        labels: "folder" makes the first folder of an image's name in its shard its class; "none" takes what is in
            ``.cls`` files, if there are any.
        image_size: Larger images are reduced to this short side in pixels; None keeps every pixel.
        channels: 3 for RGB, 1 for luminance.
        class_names: The classes in the order of their numbers, where other shards define them.
        options: How they are indexed, kept and shuffled.
        cache_dir: Folder for the index and for copies of remote shards.
        num_threads: How many shards are indexed at once.
        progress: Whether to say what is going on.

    Raises:
        ValueError: There are no shards or no images in them, a shard cannot be read or is damaged.
    """

    def __init__(
        self,
        path: str,
        labels: LabelKind = "none",
        image_size: int | None = None,
        channels: int = 3,
        class_names: Sequence[str] | None = None,
        *,
        options: ShardOptions = _AS_USUAL,
        cache_dir: Path | None = None,
        num_threads: int = 4,
        progress: bool = True,
    ) -> None:
        self._image_size = image_size
        self._channels = channels
        self._addresses = find_shards(path)
        self._names = short_names(self._addresses)
        self._found = _look(self._addresses)
        self._remote = any(remote.is_remote(address) for address in self._addresses)
        folder = cache_dir or default_cache_dir()
        self._local_cache = LocalCache(folder / "shards", int(options.cache_gb * GB)) if self._remote else None
        self._open: OrderedDict[int, OpenFile] = OrderedDict()
        self._lock = threading.Lock()
        self._window = options.window or (REMOTE_WINDOW if self._remote else None)
        self._most_open = min(_MOST_OPEN, 2 * (self._window or REMOTE_WINDOW)) if self._remote else _MOST_OPEN
        self._check_room(options.cache_gb)
        self._index = open_index(
            self._addresses, self._found, options.index or folder, self._open_file, num_threads, progress
        )
        self._labelled: Labels = number_labels(self._index, labels, plain(path), class_names)
        self.class_names = self._labelled.class_names
        self.left_out = self._index.left_out()
        digest = hashlib.blake2b(repr((labels, self._found, len(self))).encode(), digest_size=16)
        digest.update("\n".join(plain(address) for address in self._addresses).encode("utf-8", "replace"))
        self._fingerprint = f"shards {digest.hexdigest()}"
        if self._local_cache and progress:
            total = sum(found.size for found in self._found)
            say(
                f"{len(self._found):,} shards of {total / GB:.3g} GB are copied to '{self._local_cache.folder}' when "
                f"they are needed; at most {options.cache_gb:g} GB (data.shard_cache) stay there"
            )

    def __len__(self) -> int:
        return int(self._index.starts[-1])

    def read(self, index: int) -> NDArray[np.uint8]:
        return decode_file(self.file(index), self.name(index), self._image_size, self._channels, self.ranges)

    def file(self, index: int) -> IO[bytes]:
        shard = self._index.shard(index)
        size = int(self._index.columns["sizes"][index])
        if size > MOST_IMAGE_BYTES:
            raise BadImage(self.name(index), f"a file of more than {MOST_IMAGE_BYTES >> 20} MiB")
        handle = self._handle(shard)
        try:
            content = handle.read(size, int(self._index.columns["offsets"][index]))
        except OSError as error:
            if not_its_fault(error):
                raise
            raise BadImage(self.name(index), error.strerror or str(error)) from None
        return io.BytesIO(content)

    def fingerprint(self) -> str:
        return self._fingerprint

    def name(self, index: int) -> str:
        return printable(f"{self._names[self._index.shard(index)]}/{self._index.name(index)}")

    def members(self) -> Iterator[tuple[str, str]]:
        """Of each image the name of its shard, and its own name in there: `name` has both."""
        for shard, name in enumerate(self._names):
            for member in self._index.names(shard):
                yield name, member

    def sizes(self) -> NDArray[np.int64]:
        return np.asarray(self._index.columns["sizes"][:], dtype=np.int64)

    def label(self, index: int) -> int:
        return self._labelled.number(index)

    def labels(self) -> NDArray[np.int64]:
        return self._labelled.numbers()

    def examples(self, num: int) -> list[int]:
        # those of one shard, where others would have to be copied first
        last = (
            int(self._index.starts[np.flatnonzero(np.diff(self._index.starts))[0] + 1]) if self._remote else len(self)
        )
        return np.linspace(0, last - 1, min(num, last)).astype(int).tolist()

    def groups(self) -> Groups | None:
        if self._window is None:
            return None
        counts = np.diff(self._index.starts)
        return Groups(np.repeat(np.arange(len(counts), dtype=np.int32), counts), self._window)

    def ahead(self, batches: Iterator[NDArray[np.int64]]) -> Generator[None, None, None]:
        if self._local_cache is None:
            yield from super().ahead(batches)
            return
        shards = (np.searchsorted(self._index.starts, batch, side="right") - 1 for batch in batches)
        with self._lock:
            self._open.clear()
        yield from prefetch(shards, 2 * (self._window or REMOTE_WINDOW), self._local, self._release)

    def _local(self, shard: int, stopped: threading.Event | None = None) -> Path:
        """The file of a shard on this machine."""
        address = self._addresses[shard]
        if self._local_cache is None or not remote.is_remote(address):
            return Path(address)
        return self._local_cache.fetch(address, self._found[shard], stopped)

    def _opened(self, shard: int, opener: Callable[[Path], T]) -> T:
        """Opens the file of a shard on this machine."""
        address = self._addresses[shard]
        if self._local_cache is None or not remote.is_remote(address):
            return opener(Path(address))
        return self._local_cache.opened(address, self._found[shard], opener)

    def _open_file(self, shard: int) -> IO[bytes]:
        return self._opened(shard, lambda path: path.open("rb"))

    def _handle(self, shard: int) -> OpenFile:
        with self._lock:
            handle = self._open.get(shard)
            if handle is not None:
                self._open.move_to_end(shard)
                return handle
        try:
            handle = self._opened(shard, OpenFile)
        except OSError as error:
            name = plain(self._addresses[shard])
            raise ValueError(f"cannot read the shard '{name}': {error.strerror or error}") from None
        state = handle.state()
        found = self._found[shard]
        is_copy = self._local_cache is not None and remote.is_remote(self._addresses[shard])
        if state.st_size != found.size or not (is_copy or str(state.st_mtime_ns) == found.stamp):
            raise ValueError(
                f"the shard '{plain(self._addresses[shard])}' has changed since its index was made; start again, and "
                "it will be indexed anew"
            )
        with self._lock:
            # closed when the last thread that reads from it lets go
            handle = self._open.setdefault(shard, handle)
            while len(self._open) > self._most_open:
                self._open.popitem(last=False)
        return handle

    def _release(self, shard: int) -> None:
        """Lets go of a shard: as long as it is open, a copy that was removed still takes its room on the disk."""
        with self._lock:
            self._open.pop(shard, None)
        if self._local_cache is not None and remote.is_remote(self._addresses[shard]):
            self._local_cache.release(self._addresses[shard], self._found[shard])

    def _check_room(self, cache_gb: float) -> None:
        """That the shards of two windows, which are needed at one time, have room."""
        if self._local_cache is None:
            return
        window = self._window or REMOTE_WINDOW
        sizes = sorted((found.size for found in self._found), reverse=True)
        needed = sum(sizes[: 2 * window])
        if needed > self._local_cache.limit:
            raise ValueError(
                f"data.shard_cache is {cache_gb:g} GB, but two windows of {window} shards (data.shard_window) take up "
                f"to {needed / GB:.3g} GB; give more room or a smaller window"
            )


def _look(addresses: list[str]) -> list[Found]:
    """The states of all shards."""
    if not any(remote.is_remote(address) for address in addresses):
        return [_look_here(address) for address in addresses]
    with ThreadPoolExecutor(_LOOKERS, thread_name_prefix="look") as pool:
        looked = pool.map(lambda each: remote.look(each) if remote.is_remote(each) else _look_here(each), addresses)
        return list(looked)


def _look_here(address: str) -> Found:
    try:
        state = os.stat(address)  # noqa: PTH116 (of a text: there may be a hundred thousand)
    except OSError as error:
        raise ValueError(f"cannot read the shard '{plain(address)}': {error.strerror or error}") from None
    return Found(state.st_size, str(state.st_mtime_ns))
