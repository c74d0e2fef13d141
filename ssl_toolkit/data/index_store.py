"""`IndexStore`: numbers of images without their pixels, for training on features that are kept."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ssl_toolkit.batch import Images
from ssl_toolkit.data.store import Store


class _Bad:
    """Stands for `BadFiles`: which images there are no features of."""

    def __init__(self, places: NDArray[np.int64]) -> None:
        self.found = dict.fromkeys(places.tolist())


class IndexStore(Store):
    """Images without pixels: their batches have the right number of images, of no pixels each.

    Args:
        missing: int64 array: the numbers of images that there is nothing of; they count as bad.
    """

    def __init__(self, missing: NDArray[np.int64]) -> None:
        bad: Any = _Bad(missing)
        self.bad = bad
        self._missing = missing

    def gather(self, indices: NDArray[np.int64]) -> tuple[Images, list[int]]:
        """A batch; see `Store`."""
        missing = np.flatnonzero(np.isin(indices, self._missing)).tolist()
        num = len(indices) - len(missing)
        return Images(torch.zeros(num, 0, 0, 0, dtype=torch.uint8), torch.zeros(num, 2, dtype=torch.int64)), missing
