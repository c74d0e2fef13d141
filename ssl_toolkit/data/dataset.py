"""`ImageSet`: a source with the store of its decoded images, which is made on first use."""

from __future__ import annotations

import hashlib
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL
import torch
from numpy.typing import NDArray

from ssl_toolkit.data.bad_files import BadFiles, OnError
from ssl_toolkit.data.cache import CacheKind, default_cache_dir, open_store
from ssl_toolkit.data.decode import DECODING, BadImage
from ssl_toolkit.data.sources import Source, SubsetSource
from ssl_toolkit.data.store import Store
from ssl_toolkit.data.survey import RangeOption, Survey, survey


class ReadOptions(NamedTuple):
    """How images are decoded and kept; the fields are arguments of `ImageData`."""

    image_size: int
    channels: int
    on_error: OnError
    max_bad: float
    cache: CacheKind
    cache_dir: Path | None
    num_threads: int
    read_timeout: float
    range: RangeOption = "auto"


class ImageSet:
    """The images of one source.

    Args:
        source: Where they come from.
        options: How they are decoded and kept.
        is_rank_zero: Whether this process shows progress and names bad files for all.

    Attributes:
        labels: int64 tensor of shape ``[num]``: class numbers, -1 for none.
        targets: float32 tensor of shape ``[num, targets]``: numbers to predict, NaN where one is not known; None
            without any.
        weights: float32 tensor of shape ``[num]``: how much each counts in the loss of a transfer; None for alike.
        covariates: float32 tensor of shape ``[num, covariates]``: numbers that are given, NaN where one is not known;
            None without any.
    """

    def __init__(self, source: Source, options: ReadOptions, is_rank_zero: bool = True) -> None:
        self.source = source
        self.labels = torch.from_numpy(source.labels())
        targets = source.targets()
        self.targets = None if targets is None else torch.from_numpy(targets)
        weights = source.weights()
        self.weights = None if weights is None else torch.from_numpy(weights)
        covariates = source.covariates()
        self.covariates = None if covariates is None else torch.from_numpy(covariates)
        self._options = options
        self._is_rank_zero = is_rank_zero

    def survey(self, indices: NDArray[np.int64]) -> Survey:
        """What some of these images hold; seen before they are decoded, since it settles how."""
        options = self._options
        folder = self.cache_dir
        return survey(self.source, indices, options.range, options.num_threads, options.read_timeout, folder)

    @cached_property
    def store(self) -> Store:
        """The decoded images; the first use may take as long as decoding them all."""
        options = self._options
        # without a cache every process meets different bad images, which only it can name
        announce = self._is_rank_zero or options.cache == "none"
        key = hashlib.blake2b(self.source.fingerprint().encode(), digest_size=4).hexdigest()
        listing = self.cache_dir / f"bad-files-{key}.txt"
        return open_store(
            self.source,
            BadFiles(len(self.source), options.on_error, options.max_bad, announce, listing),
            settings=f"image_size={options.image_size} {sorted((self.source.ranges or {}).items())}",
            channels=options.channels,
            num_threads=options.num_threads,
            cache=options.cache,
            cache_dir=options.cache_dir,
            progress=self._is_rank_zero,
            read_timeout=options.read_timeout,
        )

    @property
    def cache_dir(self) -> Path:
        """Where what was found out about the images is kept."""
        return self._options.cache_dir or default_cache_dir()

    @property
    def is_decoded(self) -> bool:
        """Whether `store` is there already."""
        return "store" in self.__dict__

    @property
    def settings(self) -> str:
        """What decoded pixels depend on beside their file."""
        return f"image_size={self._options.image_size} channels={self._options.channels}"

    @property
    def content_key(self) -> str:
        """What the decoded images depend on."""
        settings = f"{self.settings} {sorted((self.source.ranges or {}).items())}"
        return f"{DECODING} {PIL.__version__}\n{settings}\n{self.source.fingerprint()}"

    @property
    def bad_files(self) -> list[BadImage]:
        """The images that could not be decoded, as far as is known, in the order of the source."""
        if not self.is_decoded:
            return []
        return [error for _, error in sorted(self.store.bad.found.items())]

    def subset(self, places: NDArray[np.int64]) -> ImageSet:
        """The images at some places of the source, renumbered from 0."""
        return ImageSet(SubsetSource(self.source, places), self._options, self._is_rank_zero)

    def without_bad(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """The images among these that are not known to be bad."""
        bad = np.fromiter(self.store.bad.found, dtype=np.int64)
        return indices[~np.isin(indices, bad)] if len(bad) else indices
