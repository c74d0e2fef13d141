"""Reading many images of a source in the threads of a pool."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future
from typing import IO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ssl_toolkit.data.bad_files import BadFiles
from ssl_toolkit.data.console import show_progress
from ssl_toolkit.data.decode import BadImage
from ssl_toolkit.data.decode_pool import ReadingThreads, reading
from ssl_toolkit.data.sources import Source

_CHUNKS_AHEAD = 16


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
            f"expected uint8 images [height, width, {channels}] (data.channels is {channels}), but the source delivers "
            f"{array.dtype} {list(array.shape)}"
            + (f": set --data.channels {array.shape[2]}" if array.ndim == 3 and array.shape[2] in (1, 3) else "")
        )
    return np.ascontiguousarray(array.transpose(2, 0, 1))
