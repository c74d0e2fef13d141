"""`GridTask`: the base class of tasks on a grid of patches."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from pretext.base.fill import check_no_fill
from pretext.base.task import PretextTask, rows_of_each
from ssl_toolkit.augment import RandomView, drop_channels, project_colour, take_patches
from ssl_toolkit.batch import Images
from ssl_toolkit.random import fold_in, integers

GRID = 3


class GridTask(PretextTask):
    """Base class of tasks on the patches of an image, one in each cell of a 3x3 grid. A new one defines `loss`.

    Each patch passes through the backbone once.

    Args:
        view: How the image that is cut is made: its size is the grid's side. Strong colour changes are not needed.
            Rotation, erasing and policies are refused: they fill places with grey, and where the fill lies in a patch
            tells where the patch lies in the image.
        patch_size: Side of a patch in pixels. Doersch et al. 2015 have two thirds of a cell (96 px and a gap of 48).
        jitter: A patch is moved by up to this many pixels each way. With the gap between the patches it keeps edges
            that continue across a border from giving the answer away.
        colour: What is done against chromatic aberration, by which a lens gives the position away (Doersch et al. 2015,
            section 3.1): ``dropping`` keeps one random channel of each patch and replaces the others with noise,
            ``projection`` removes green against magenta, ``none`` does nothing. Grey images, of 1 channel, have none:
            they stay as they are.
        **kwargs: See `ssl_toolkit.task.Task`.
    """

    takes_soft_targets = True
    traits = frozenset({"several_rows"})

    def __init__(
        self,
        *,
        view: RandomView,
        patch_size: int,
        jitter: int = 2,
        colour: Literal["dropping", "projection", "none"] = "dropping",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_no_fill(view, ("rotation", "erase", "policy"), "a patch's place")
        cell = view.size // GRID
        if not 0 < patch_size <= cell or not 0 <= jitter <= (cell - patch_size) // 2:
            raise ValueError(
                f"model.patch_size={patch_size} with jitter={jitter} does not fit a cell of {cell} px (a third of "
                f"view.size={view.size}); expected patch_size + 2 * jitter of at most {cell}"
            )
        if self._side_before_last_stage(patch_size) < 2:
            raise ValueError(
                f"model.patch_size={patch_size} is too small for {self.backbone.name}: a single pixel is left before "
                "its last stage; expected a larger model.patch_size (and view.size), or backbone.stem: small"
            )
        self.view = view
        self.patch_size = patch_size
        self.jitter = jitter
        self.colour = colour

    @torch.no_grad()
    def _side_before_last_stage(self, patch_size: int) -> int:
        """Side of the feature map that the last stage gets of a patch."""
        self.backbone.eval()
        maps = self.backbone.feature_maps(torch.zeros(1, self.backbone.in_channels, patch_size, patch_size))
        self.backbone.train()
        return maps[self.backbone.stages[-2]].shape[-1]

    def make_patches(self, images: Images, keys: Tensor) -> Tensor:
        """The patches of each image in reading order: ``[batch, 9, channels, patch_size, patch_size]``."""
        cell = self.view.size // GRID
        corners = torch.arange(GRID, device=keys.device) * cell + (cell - self.patch_size) // 2
        tops, lefts = corners.repeat_interleave(GRID), corners.repeat(GRID)
        shifts = integers(fold_in(keys, "jitter"), -self.jitter, self.jitter + 1, 2 * GRID**2)
        shift_down, shift_right = shifts.chunk(2, dim=1)
        views = self.view(images, fold_in(keys, "view"))
        patches = take_patches(views, tops + shift_down, lefts + shift_right, self.patch_size)
        flat = patches.flatten(0, 1)
        if self.colour == "dropping":
            places = torch.arange(GRID**2, device=keys.device)
            flat = drop_channels(
                flat, fold_in(fold_in(keys, "dropping")[:, None], places).flatten(), self.backbone.mean
            )
        elif self.colour == "projection" and flat.shape[1] > 1:
            flat = project_colour(flat)
        return flat.unflatten(0, patches.shape[:2])

    def mixed_rows(self, batch: Any, partners: Tensor) -> tuple[Tensor, Tensor]:
        """Each patch with the patch at the same place of its image's partner."""
        return rows_of_each(partners, GRID**2)
