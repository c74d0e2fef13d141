"""Masks of the built-in images: which pixels their object covers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby

import numpy as np
import torch
from numpy.typing import NDArray

from ssl_toolkit.data.procedural.colours import Colour
from ssl_toolkit.data.procedural.pen import Pen, Pose

_COVERED = 0.5


class _CoverPen(Pen):
    """Keeps how much of each pixel the parts and their outlines cover, in the place of colours."""

    def __init__(self, keys: torch.Tensor, size: int, pose: Pose | None) -> None:
        cover = np.zeros((len(keys), size, size), np.float32)
        super().__init__([cover], keys, [[np.zeros((len(keys), 1, 1), np.float32)] for _ in range(4)], pose)

    @property
    def cover(self) -> NDArray[np.float32]:
        return self._canvas[0]

    def fill(self, distance: np.ndarray, colour: Colour, outlined: bool = True) -> None:
        reach = distance - self._line_width if outlined else distance
        np.maximum(self.cover, np.clip(0.5 - reach * self._pixels, 0, 1), out=self.cover)


def object_masks(
    draw_objects: Sequence[Callable[[Pen], None]], keys: torch.Tensor, size: int, pose: Pose | None = None
) -> NDArray[np.bool_]:
    """The pixels of which the object, with its outline, covers at least half.

    Args:
        draw_objects: What draws the object of each image.
        keys: int64 tensor of shape ``[num]``, of each image: those of `draw_scenes`.
        size: Height and width in pixels.
        pose: Where the objects lie; by chance if none is given.

    Returns:
        Array of shape ``[num, size, size]``.
    """
    pen, start = _CoverPen(keys, size, pose), 0
    for draw_object, same in groupby(draw_objects):
        stop = start + len(list(same))
        draw_object(pen.part(slice(start, stop)))
        start = stop
    return pen.cover >= _COVERED
