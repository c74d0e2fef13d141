"""Stores of decoded images: in memory, in one memory-mapped file, or none.

A decoded image is laid out as ``[channels, height, width]``, as the models want it: the transposition is paid once,
when the store is built, and a batch of equal images is one copy of whole rows.
"""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from ssl_toolkit.batch import Images
from ssl_toolkit.data.bad_files import BadFiles
from ssl_toolkit.data.decode import BadImage
from ssl_toolkit.data.decode_pool import READ_TIMEOUT, ReadingThreads
from ssl_toolkit.data.reading import read_many
from ssl_toolkit.data.sources import Source


class Store(ABC):
    """Decoded images by their number in the source.

    Attributes:
        bad: The images that could not be decoded, as far as is known.
    """

    bad: BadFiles

    @abstractmethod
    def gather(self, indices: NDArray[np.int64]) -> tuple[Images, list[int]]:
        """A batch of images.

        Args:
            indices: int64 array of shape ``[batch]``.

        Returns:
            The images that can be decoded, in order, and the places in ``indices`` of those that cannot.
        """

    def digests(self, most_bytes: int) -> NDArray[np.uint64] | None:
        """A hash of each image's pixels, uint64 array, 0 for a bad one; None where they are not all at hand.

        Args:
            most_bytes: None, too, if all of them take more.
        """
        return None

    def ahead(self, batches: Iterator[NDArray[np.int64]]) -> Generator[None, None, None]:
        """As `Source.ahead`; nothing to prepare where all images are decoded."""
        yield from ()


class DecodedStore(Store):
    """All images decoded, in one array of bytes.

    Args:
        data: uint8 array: one image after the other, each ``[channels, height, width]``.
        sizes: int64 array of shape ``[num, 2]``: height and width of each image; 0 and 0 if it is bad.
        channels: Of every image.
        bad: The images that could not be decoded.
    """

    def __init__(self, data: NDArray[np.uint8], sizes: NDArray[np.int64], channels: int, bad: BadFiles) -> None:
        self.bad = bad
        self._data = data
        self._sizes = sizes
        self._channels = channels
        lengths = sizes.prod(axis=1) * channels
        self._offsets = np.concatenate([[0], np.cumsum(lengths)])
        assert self._offsets[-1] == len(data)
        self._equal: NDArray[np.uint8] | None = None
        if len(sizes) and (sizes == sizes[0]).all() and sizes[0].all():
            self._equal = data.reshape(len(sizes), channels, *sizes[0])

    def gather(self, indices: NDArray[np.int64]) -> tuple[Images, list[int]]:
        if self._equal is not None:
            # NumPy copies whole rows; indexing the same bytes as a tensor takes seventy times as long
            pixels = torch.from_numpy(self._equal.take(indices, axis=0))
            return Images(pixels, torch.from_numpy(self._sizes[indices])), []
        good = self._sizes[indices, 0] > 0
        arrays = [self._image(index) for index in indices[good]]
        return to_canvas(arrays, self._channels), np.flatnonzero(~good).tolist()

    def digests(self, most_bytes: int) -> NDArray[np.uint64] | None:
        if len(self._data) > most_bytes:
            return None
        found = np.zeros(len(self._sizes), dtype=np.uint64)
        for index, size in enumerate(self._sizes):
            if size[0]:
                pixels = self._data[self._offsets[index] : self._offsets[index + 1]]
                digest = hashlib.blake2b(pixels.tobytes(), digest_size=8, salt=size.astype("<i8").tobytes()).digest()
                found[index] = int.from_bytes(digest, "little") or 1
        return found

    def _image(self, index: int) -> NDArray[np.uint8]:
        height, width = self._sizes[index]
        return self._data[self._offsets[index] : self._offsets[index + 1]].reshape(self._channels, height, width)


class DecodingStore(Store):
    """Decodes each image again whenever it is asked for.

    Args:
        source: The images.
        channels: Of every image.
        num_threads: How many images are decoded at once.
        bad: Where images that cannot be decoded are noted.
        read_timeout: Seconds that reading one image may take.
    """

    def __init__(
        self, source: Source, channels: int, num_threads: int, bad: BadFiles, read_timeout: float = READ_TIMEOUT
    ) -> None:
        self.bad = bad
        self._source = source
        self._channels = channels
        self._num_threads = num_threads
        self._read_timeout = read_timeout
        self._pool: ReadingThreads | None = None
        self._pool_process = 0

    def gather(self, indices: NDArray[np.int64]) -> tuple[Images, list[int]]:
        results = list(read_many(self._source, indices.tolist(), self._channels, self._threads(), chunk=8))
        missing = [place for place, result in enumerate(results) if isinstance(result, BadImage)]
        for index, result in zip(indices.tolist(), results, strict=True):
            self.bad.saw(index, result if isinstance(result, BadImage) else None)
        self.bad.check()
        arrays = [result for result in results if not isinstance(result, BadImage)]
        return to_canvas(arrays, self._channels), missing

    def ahead(self, batches: Iterator[NDArray[np.int64]]) -> Generator[None, None, None]:
        yield from self._source.ahead(batches)

    def _threads(self) -> ReadingThreads:
        """Made at first use and made again after a fork, which no thread survives."""
        if self._pool is None or self._pool_process != os.getpid():
            self._pool = ReadingThreads(self._num_threads, self._read_timeout)
            self._pool_process = os.getpid()
        return self._pool


def to_canvas(arrays: Sequence[NDArray[np.uint8]], channels: int) -> Images:
    """Images of any sizes, each ``[channels, height, width]``, in the top left corners of one canvas."""
    sizes = np.array([array.shape[1:] for array in arrays], dtype=np.int64).reshape(len(arrays), 2)
    height, width = sizes.max(axis=0) if len(arrays) else (1, 1)
    if (sizes == (height, width)).all():
        pixels = np.empty((len(arrays), channels, height, width), dtype=np.uint8)
    else:
        pixels = np.zeros((len(arrays), channels, height, width), dtype=np.uint8)
    for canvas, array, (rows, columns) in zip(pixels, arrays, sizes, strict=True):
        canvas[:, :rows, :columns] = array
    return Images(torch.from_numpy(pixels), torch.from_numpy(sizes))
