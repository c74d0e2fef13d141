"""The masks of the built-in images."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ssl_toolkit.data.divided import DividedData
from ssl_toolkit.data.masks.base import Masks
from ssl_toolkit.data.procedural import ProceduralSource
from ssl_toolkit.data.splits import Split

PROCEDURAL, OBJECT = "procedural", "procedural:object"


class ProceduralMasks(Masks):
    """The masks of the built-in images.

    Args:
        data: These.
        only_object: All kinds of objects are one class.

    Raises:
        ValueError: The images are others.
    """

    def __init__(self, data: DividedData, only_object: bool) -> None:
        source = data.sources()[0].images.source
        if not isinstance(source, ProceduralSource):
            raise ValueError(
                f"--masks {PROCEDURAL} are those of the built-in images (--data.source procedural), but the images are "
                f"{data.title}; give the folder of their masks"
            )
        self.title = OBJECT if only_object else PROCEDURAL
        self.class_names = ["background", *(["object"] if only_object else source.class_names)]
        self.remarks = []
        self._data, self._source, self._only_object = data, source, only_object

    def members(self, split: Split) -> NDArray[np.int64]:
        return self._data.indices(split)

    def read(
        self, split: Split, indices: NDArray[np.int64], sizes: NDArray[np.int64], rows: NDArray[np.int64],
        columns: NDArray[np.int64],
    ) -> NDArray[np.uint8]:  # fmt: skip
        masks = self._source.masks(indices)
        masks = np.minimum(masks, 1) if self._only_object else masks
        return masks[np.arange(len(masks))[:, None, None], rows[:, :, None], columns[:, None, :]]
