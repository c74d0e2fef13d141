"""`Masks`: a class number for each pixel of some images of a data set."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import NDArray

from ssl_toolkit.data.splits import Split


class Masks(ABC):
    """Masks of some images of a data set.

    Attributes:
        title: What to call them.
        class_names: The names of the classes in the order of their numbers.
        remarks: What a user should know of them, in lines.
    """

    title: str
    class_names: list[str]
    remarks: list[str]

    @abstractmethod
    def members(self, split: Split) -> NDArray[np.int64]:
        """Sorted numbers in their source of the images of a split that have a mask."""

    @abstractmethod
    def read(
        self, split: Split, indices: NDArray[np.int64], sizes: NDArray[np.int64], rows: NDArray[np.int64],
        columns: NDArray[np.int64],
    ) -> NDArray[np.uint8]:  # fmt: skip
        """Masks by some of their pixels.

        Args:
            split: Of the images.
            indices: int64 array of shape ``[batch]``: their numbers.
            sizes: int64 array of shape ``[batch, 2]``: height and width of the decoded images.
            rows: int64 array of shape ``[batch, height]``: rows of the decoded images.
            columns: int64 array of shape ``[batch, width]``: columns of the decoded images.

        Returns:
            uint8 array of shape ``[batch, height, width]``: the class number there, or 255 for a pixel that does not
            count.
        """
