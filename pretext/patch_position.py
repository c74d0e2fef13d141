"""Patch position: say where one patch of an image lies relative to another.

Doersch, Gupta, Efros: "Unsupervised visual representation learning by context prediction", ICCV 2015, arXiv 1505.05192.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor

from pretext.base import PretextTask
from ssl_toolkit.augment import RandomView, drop_channels, project_colour, take_patches
from ssl_toolkit.batch import Images
from ssl_toolkit.losses.full_precision import full_precision
from ssl_toolkit.losses.soft_targets import soft_cross_entropy, soften
from ssl_toolkit.modules.mlp import mlp
from ssl_toolkit.random import fold, integers
from ssl_toolkit.task import StepOutput

GRID = 3
# the eight neighbours of a patch, as (rows down, columns right), in reading order: the classes of the task
DIRECTIONS = [(-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1)]


class PatchPosition(PretextTask):
    """Predicts which of the eight neighbours of one patch another patch is (Doersch et al. 2015, section 3).

    An image is cut into a 3x3 grid of cells with one patch in each. Each patch passes through the backbone once; all 40
    ordered pairs of neighbouring patches are then classified. Pairs side by side are more frequent (6 of 40 each) than
    diagonal ones (4 of 40), so classes are weighted equally: a network that has collapsed to a constant has the
    loss ln 8 = 2.079 and the accuracy 12.5 %.

    Args:
        view: How the image that is cut is made: its size is the grid's side. Strong colour changes are not needed.
        patch_size: Side of a patch in pixels. The paper's proportion is two thirds of a cell (96 px and a gap of 48).
        jitter: A patch is moved by up to this many pixels each way (the paper: 7). With the gap between the patches it
            keeps edges that continue across a border from giving the answer away.
        colour: What is done against chromatic aberration, by which a lens gives the position away (section 3.1):
            ``dropping`` keeps one random channel of each patch and replaces the others with noise, ``projection``
            removes green against magenta, ``none`` does nothing.
        hidden_width: Width of the classifier's hidden layer.
        **kwargs: See `ssl_toolkit.task.Task`.
    """

    takes_soft_targets = True
    pairs: Tensor
    class_weights: Tensor

    def __init__(
        self,
        *,
        view: RandomView,
        patch_size: int,
        jitter: int = 2,
        colour: Literal["dropping", "projection", "none"] = "dropping",
        hidden_width: int = 512,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
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
        self.classifier = mlp([2 * self.backbone.num_features, hidden_width, len(DIRECTIONS)])
        pairs = neighbour_pairs()
        self.register_buffer("pairs", pairs, persistent=False)
        self.register_buffer("class_weights", 1.0 / pairs[:, 2].bincount(), persistent=False)

    @torch.no_grad()
    def _side_before_last_stage(self, patch_size: int) -> int:
        """Side of the feature map that the last stage gets of a patch."""
        self.backbone.eval()
        maps = self.backbone.feature_maps(torch.zeros(1, self.backbone.in_channels, patch_size, patch_size))
        self.backbone.train()
        return maps[self.backbone.stages[-2]].shape[-1]

    def initial_loss(self, batch_size: int) -> float:
        """Each of the eight positions is as likely: ln 8."""
        return math.log(len(DIRECTIONS))

    def make_views(self, images: Images, keys: Tensor) -> Tensor:
        """The patches of each image in reading order: ``[batch, 9, channels, patch_size, patch_size]``."""
        cell = self.view.size // GRID
        corners = torch.arange(GRID, device=keys.device) * cell + (cell - self.patch_size) // 2
        tops, lefts = corners.repeat_interleave(GRID), corners.repeat(GRID)
        shifts = integers(fold(keys, "jitter"), -self.jitter, self.jitter + 1, 2 * GRID**2)
        shift_down, shift_right = shifts.chunk(2, dim=1)
        views = self.view(images, fold(keys, "view"))
        patches = take_patches(views, tops + shift_down, lefts + shift_right, self.patch_size)
        flat = patches.flatten(0, 1)
        if self.colour == "dropping":
            places = torch.arange(GRID**2, device=keys.device)
            flat = drop_channels(flat, fold(fold(keys, "dropping")[:, None], places).flatten(), self.backbone.mean)
        elif self.colour == "projection":
            flat = project_colour(flat)
        return flat.unflatten(0, patches.shape[:2])

    def mixed_rows(self, partners: Tensor) -> tuple[Tensor, Tensor]:
        """Each patch with the patch at the same place of its image's partner."""
        images = torch.arange(len(partners), device=partners.device).repeat_interleave(GRID**2)
        places = torch.arange(GRID**2, device=partners.device).repeat(len(partners))
        return images, partners[images] * GRID**2 + places

    def loss(self, views: Tensor) -> StepOutput:
        """Cross entropy over the eight positions; ``position_top1`` is the accuracy (chance: 0.125)."""
        features = self.backbone(views.flatten(0, 1))
        of_patch = features.unflatten(0, views.shape[:2])
        from_patch, to_patch, direction = self.pairs.unbind(dim=1)
        couples = torch.cat([of_patch[:, from_patch], of_patch[:, to_patch]], dim=-1).flatten(0, 1)
        logits = full_precision(self.classifier(couples))
        targets = direction.repeat(len(views))
        # mixing changes no target: of both images the patches lie alike
        loss = soft_cross_entropy(logits, soften(targets, smoothing=self.smoothing), self.class_weights)
        weights = self.class_weights[targets]
        top1 = (weights * (logits.detach().argmax(dim=1) == targets)).sum() / weights.sum()
        return StepOutput(loss, features, {"position_top1": top1})


def neighbour_pairs() -> Tensor:
    """All ordered pairs of neighbouring patches of the grid.

    Returns:
        int64 tensor of shape ``[40, 3]``: the place of the first patch and of the second (in reading order), and the
        class, that is the index in `DIRECTIONS` of the step from the first to the second.
    """
    pairs = []
    for row in range(GRID):
        for column in range(GRID):
            for direction, (down, right) in enumerate(DIRECTIONS):
                if 0 <= row + down < GRID and 0 <= column + right < GRID:
                    pairs.append((row * GRID + column, (row + down) * GRID + column + right, direction))
    return torch.tensor(pairs)
