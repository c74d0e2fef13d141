"""Which images of which source make up the training, validation and test splits of a run."""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from ssl_toolkit.data.decode import BadImage
from ssl_toolkit.data.image_set import ImageSet
from ssl_toolkit.data.splits import few_labels, split_indices
from ssl_toolkit.errors import nearest

Split = Literal["train", "val", "test"]


class Shares(NamedTuple):
    """How images are divided; the fields are arguments of `ImageData`."""

    val_fraction: float
    test_fraction: float
    label_fraction: float
    labels_per_class: int | None
    seed: int


class SplitImages(NamedTuple):
    """The images of a split.

    Attributes:
        images: All images of the source that the split belongs to.
        indices: Sorted int64 array: the numbers in that source of the images of the split.
    """

    images: ImageSet
    indices: NDArray[np.int64]


class Division:
    """The images of a run and their splits.

    The training split is decoded at once, and so are splits of the same source; another source is decoded when one of
    its splits is first asked for.

    Args:
        sets: All images: those to be divided under "train", and those that are a split as they are under its name.
        shares: How they are divided.
        split_seed: Another seed gives another division.

    Attributes:
        shares_source: Whether the validation or the test split is a share of the same source as the training split.

    Raises:
        ValueError: The images are too few, or too many of them are bad.
    """

    def __init__(self, sets: dict[str, ImageSet], shares: Shares, split_seed: int) -> None:
        self._shares = shares
        self._sets = sets
        main = sets["train"]
        val_fraction = 0.0 if "val" in sets else shares.val_fraction
        test_fraction = 0.0 if "test" in sets else shares.test_fraction
        parts = split_indices(main.labels.numpy(), val_fraction, test_fraction, split_seed)
        parts |= {name: np.arange(len(images.labels)) for name, images in sets.items() if name != "train"}
        self._parts = parts  # with bad images, which are known only when all have been decoded
        self._splits: dict[str, SplitImages] = {}
        self.shares_source = bool(val_fraction or test_fraction)
        self.split("train")

    def split(self, name: str) -> SplitImages:
        """The good images of a split.

        Raises:
            ValueError: There is no such split.
        """
        if name not in get_args(Split):
            raise ValueError(f"there is no split {name!r}{nearest(name, get_args(Split))}; it is train, val or test")
        if name not in self._splits:
            images = self._sets.get(name, self._sets["train"])
            indices = images.without_bad(self._parts[name])
            if name == "train":
                indices = self._few_labelled(images, indices)
            self._splits[name] = SplitImages(images, indices)
        return self._splits[name]

    def counts(self) -> dict[str, int]:
        """The number of images of each split, without decoding any: bad ones count until they are known."""
        return {
            name: len(self._splits[name].indices if name in self._splits else self._parts[name])
            for name in get_args(Split)
        }

    def bad_files(self) -> list[BadImage]:
        """The images that could not be decoded, as far as is known."""
        return [error for images in self._sets.values() for error in images.bad_files]

    def _few_labelled(self, images: ImageSet, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        fraction, per_class = self._shares.label_fraction, self._shares.labels_per_class
        if fraction == 1 and per_class is None:
            return indices
        labels = images.labels.numpy()[indices]
        return indices[few_labels(labels, self._shares.seed, fraction=fraction, per_class=per_class)]
