"""`GridTask`: the base class of tasks on a grid of patches."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pretext.base.patches import PatchTask
from pretext.base.task import rows_of_each
from ssl_toolkit.augment import RandomView
from ssl_toolkit.batch import Images
from ssl_toolkit.random import fold_in, integers

GRID = 3


class GridTask(PatchTask):
    """Base class of tasks on the patches of an image, one in each cell of a 3x3 grid. A new one defines `loss`.

    Args:
        view: How the image that is cut is made: its size is the grid's side. See `pretext.base.PatchTask`.
        patch_size: Side of a patch in pixels. Doersch et al. 2015 have two thirds of a cell (96 px and a gap of 48).
        jitter: A patch is moved by up to this many pixels each way. With the gap between the patches it keeps edges
            that continue across a border from giving the answer away.
        **kwargs: See `pretext.base.PatchTask` and `ssl_toolkit.task.Task`.
    """

    takes_soft_targets = True

    def __init__(self, *, view: RandomView, patch_size: int, jitter: int = 2, **kwargs: Any) -> None:
        super().__init__(view=view, patch_size=patch_size, **kwargs)
        cell = view.size // GRID
        if not 0 < patch_size <= cell or not 0 <= jitter <= (cell - patch_size) // 2:
            raise ValueError(
                f"model.patch_size={patch_size} with jitter={jitter} does not fit a cell of {cell} px (a third of "
                f"view.size={view.size}); expected patch_size + 2 * jitter of at most {cell}"
            )
        self.check_patch_size()
        self.jitter = jitter

    def make_patches(self, images: Images, keys: Tensor) -> Tensor:
        """The patches of each image in reading order: ``[batch, 9, channels, patch_size, patch_size]``."""
        cell = self.view.size // GRID
        corners = torch.arange(GRID, device=keys.device) * cell + (cell - self.patch_size) // 2
        tops, lefts = corners.repeat_interleave(GRID), corners.repeat(GRID)
        shifts = integers(fold_in(keys, "jitter"), -self.jitter, self.jitter + 1, 2 * GRID**2)
        shift_down, shift_right = shifts.chunk(2, dim=1)
        return self.cut(images, keys, tops + shift_down, lefts + shift_right)

    def mixed_rows(self, batch: Any, partners: Tensor) -> tuple[Tensor, Tensor]:
        """Each patch with the patch at the same place of its image's partner."""
        return rows_of_each(partners, GRID**2)
