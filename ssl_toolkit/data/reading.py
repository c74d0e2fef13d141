"""Reading many images in threads, and keeping count of those that cannot be read."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import IO, Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress

from ssl_toolkit.data.decode import BadImage
from ssl_toolkit.data.sources import Source
from ssl_toolkit.data.threads import ReadingThreads, reading
from ssl_toolkit.errors import printable
from ssl_toolkit.files import write_atomically

CONSOLE = Console(stderr=True)
"""Where messages about images go; shared, so that they do not tear a progress bar."""

T = TypeVar("T")
OnError = Literal["skip", "raise"]

_CHUNKS_AHEAD = 16
_MAX_NAMED = 100  # messages about bad files on the screen


class BadFiles:
    """The images of a source that turned out to be unreadable, and the rules about them.

    Args:
        num_images: How many images the source holds.
        on_error: "skip" notes and names a bad file, "raise" stops at the first one.
        max_bad: Largest share of bad files that is tolerated, from 0 to 1.
        announce: Whether to name bad files on the screen.
        listing: Where all of them are listed when they are too many.
    """

    def __init__(
        self,
        num_images: int,
        on_error: OnError = "skip",
        max_bad: float = 0.1,
        announce: bool = True,
        listing: Path | None = None,
    ) -> None:
        self._found: dict[int, BadImage] = {}
        self._seen = np.zeros(num_images, dtype=bool)
        self._num_seen = 0
        self._on_error = on_error
        self._max_bad = max_bad
        self._announce = announce
        self._listing = listing
        # the batches of training and those of an evaluation beside it are made in different threads
        self._lock = threading.Lock()

    def saw(self, index: int, error: BadImage | None = None) -> None:
        """Notes that an image was read, well or not.

        Raises:
            ValueError: It was not, and ``on_error`` is "raise".
        """
        with self._lock:
            self._saw(index, error)

    def saw_all(self, start: int, end: int) -> None:
        """Notes that all images from one to before another were read well."""
        with self._lock:
            self._seen[start:end] = True
            self._num_seen = int(self._seen.sum())

    def _saw(self, index: int, error: BadImage | None) -> None:
        if not self._seen[index]:
            self._seen[index] = True
            self._num_seen += 1
        if error is None or index in self._found:
            return
        if self._on_error == "raise":
            raise ValueError(f"cannot decode the image {error}; remove it or set data.on_error: skip")
        self._found[index] = error
        if self._announce and len(self._found) <= _MAX_NAMED:
            say(f"skipping the bad image {error}")
        if self._announce and len(self._found) == _MAX_NAMED:
            say("further bad images are counted, but not named here")

    def check(self) -> None:
        """Raises a ValueError if too large a share of the images is bad.

        While only some have been read, they are taken for a sample: a share that chance alone could make of one that
        is tolerated does not stop a run.
        """
        num_bad, num_seen, share = len(self._found), self._num_seen, self._max_bad
        # five standard deviations of a binomial count, and five for where that is not normal
        chance = 5 * math.sqrt(num_seen * share * (1 - share)) + 5
        if num_bad <= share * len(self._seen) and num_bad <= share * num_seen + chance:
            return
        first = ", ".join(str(error) for _, error in sorted(self._found.items())[:3])
        raise ValueError(
            f"{num_bad} of {num_seen} images cannot be decoded, more than data.max_bad = {share:g} allows "
            f"({first}{', ...' if num_bad > 3 else ''}); remove them{self._list()} or raise data.max_bad"
        )

    def _list(self) -> str:
        """Writes the list, and says where it is."""
        if self._listing is None:
            return ""
        lines = [f"{printable(error.path)}\t{error.reason}\n" for _, error in sorted(self._found.items())]
        try:
            write_atomically(self._listing, "".join(lines))
        except OSError:
            return ""
        return f" (all are listed in '{self._listing}')"

    @property
    def num_images(self) -> int:
        """How many images the source holds."""
        return len(self._seen)

    @property
    def found(self) -> dict[int, BadImage]:
        """The bad images by their number in the source."""
        return self._found


def read_many(
    source: Source, indices: Sequence[int], channels: int, pool: ReadingThreads, chunk: int
) -> Generator[NDArray[np.uint8] | BadImage, None, None]:
    """Reads images in the threads of a pool.

    Args:
        source: The images.
        indices: Which of them.
        channels: How many channels each must have.
        pool: Where the work is done.
        chunk: How many images a thread reads in one go; up to 16 chunks wait for the consumer.

    Yields:
        For each index, in order: uint8 array of shape ``[channels, height, width]``, or why there is none.

    Raises:
        ValueError: The source delivers another number of channels.
        RunFailed: Reading an image does not end.
    """
    waiting: deque[Future[list[NDArray[np.uint8] | BadImage]]] = deque()
    try:
        for start in range(0, len(indices), chunk):
            waiting.append(pool.submit(_read_chunk, source, indices[start : start + chunk], channels))
            if len(waiting) > _CHUNKS_AHEAD:
                yield from pool.result(waiting.popleft())
        while waiting:
            yield from pool.result(waiting.popleft())
    finally:
        for future in waiting:
            future.cancel()


class Decoded(NamedTuple):
    """All images of a source, decoded in threads as they are asked for.

    Attributes:
        source: The images.
        channels: How many channels each must have.
        num_threads: Of decoding.
        read_timeout: Seconds that reading one image may take.
        what: What the progress bar says.
        progress: Whether to show it, if it takes long.
    """

    source: Source
    channels: int
    num_threads: int
    read_timeout: float
    what: str
    progress: bool

    def write(self, file: IO[bytes], sizes: NDArray[np.int64], bad: BadFiles, first: int = 0) -> Iterator[int]:
        """Writes the images one after the other.

        Args:
            file: Where; bad images leave nothing there.
            sizes: int64 array of shape ``[num_images, 2]``, filled in with height and width, zeros for a bad image.
            bad: Where bad images are noted; its rules apply.
            first: The image to begin with.

        Yields:
            The number of each image that is done.
        """
        indices = range(first, len(self.source))
        with ReadingThreads(self.num_threads, self.read_timeout) as pool:
            results = read_many(self.source, indices, self.channels, pool, chunk=32)
            with contextlib.closing(results):
                numbered = zip(indices, results, strict=True)
                for index, result in show_progress(numbered, len(self.source), self.what, self.progress, first):
                    if isinstance(result, BadImage):
                        bad.saw(index, result)
                    else:
                        bad.saw(index)
                        sizes[index] = result.shape[1:]
                        file.write(result.data)
                    yield index
        bad.check()


def _read_chunk(source: Source, indices: Sequence[int], channels: int) -> list[NDArray[np.uint8] | BadImage]:
    reading(source, indices[0])  # a source that reads its images one by one starts the clock for each of them
    return [
        result if isinstance(result, BadImage) else _channels_first(result, channels)
        for result in source.read_many(indices)
    ]


def _channels_first(array: NDArray[np.uint8], channels: int) -> NDArray[np.uint8]:
    if array.ndim != 3 or array.dtype != np.uint8 or array.shape[2] != channels:
        raise ValueError(
            f"expected images of {channels} channels (data.channels) as uint8 [height, width, channels], "
            f"but the source delivers {array.dtype} {list(array.shape)}"
        )
    return np.ascontiguousarray(array.transpose(2, 0, 1))


def say(text: str) -> None:
    """One line on stderr."""
    CONSOLE.print(text, markup=False, highlight=False, soft_wrap=True)


def show_progress(
    items: Iterable[T], total: int, text: str, enabled: bool = True, first: int = 0, after: float = 2.0
) -> Iterator[T]:
    """Passes items on, with a progress bar on stderr if they take long.

    Args:
        items: The items.
        total: How many there are with those before.
        text: What is going on.
        enabled: False for no bar at all.
        first: How many were there before.
        after: Seconds before the bar appears.
    """
    start = time.monotonic()
    bar = Progress(console=CONSOLE)
    task = bar.add_task(text, total=total)
    shown = False
    try:
        for count, item in enumerate(items, first + 1):
            yield item
            if not shown and enabled and time.monotonic() - start > after:
                shown = True
                bar.start()
            if shown:
                bar.update(task, completed=count)
    finally:
        if shown:
            bar.stop()
