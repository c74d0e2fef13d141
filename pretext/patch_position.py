"""Patch position: classify where one patch of an image lies relative to another.

Doersch, Gupta, Efros: "Unsupervised visual representation learning by context prediction", ICCV 2015, arXiv 1505.05192.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor

from pretext.base import GridTask
from pretext.base.grid import GRID
from pretext.base.patches import couple
from ssl_toolkit.batch import Images
from ssl_toolkit.losses import full_precision, soft_cross_entropy, soften
from ssl_toolkit.modules import mlp
from ssl_toolkit.step import StepContext, StepOutput
from ssl_toolkit.task import PhotographAccuracy

# the eight neighbours of a patch, as (rows down, columns right), in reading order: the classes of the task
DIRECTIONS = [(-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1)]


class PatchPosition(GridTask):
    """Patch position: classifies which of its eight neighbours a patch is (Doersch et al. 2015, section 3).

    An image is cut into a 3x3 grid of cells with one patch in each. Each patch passes through the backbone once; all 40
    ordered pairs of neighbouring patches are then classified. Pairs side by side are more frequent (6 of 40 each) than
    diagonal ones (4 of 40), so classes are weighted equally: a network that has collapsed to a constant has the
    loss ln 8 = 2.079 and the accuracy 12.5 %.

    Args:
        hidden_width: Width of the classifier's hidden layer.
        pairs: Which pairs are compared: ``all`` of the 40, or the eight from the ``centre`` patch to its neighbours, as
            in the paper's figure 2. The place of the second patch alone is the answer then, so that what gives it away
            (a lens, dark corners) is a shorter cut than among all pairs.
        **kwargs: See `pretext.base.GridTask` and `ssl_toolkit.task.Task`.
    """

    photograph_accuracy = PhotographAccuracy(
        "position_top1",
        0.40,
        "reported of Doersch et al. 2015, arXiv 1505.05192: 38 to 40 % on ImageNet",
        "model.colour, model.rescaling, model.downsampling, a larger model.jitter, a smaller model.patch_size",
    )
    compared: Tensor
    class_weights: Tensor

    def __init__(self, *, hidden_width: int = 512, pairs: Literal["all", "centre"] = "all", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if pairs not in ("all", "centre"):
            raise ValueError(f"model.pairs is {pairs!r}, expected all or centre")
        self.classifier = mlp([2 * self.backbone.num_features, hidden_width, len(DIRECTIONS)])
        compared = neighbour_pairs()
        if pairs == "centre":
            compared = compared[compared[:, 0] == GRID**2 // 2]
        self.register_buffer("compared", compared, persistent=False)
        self.register_buffer("class_weights", 1.0 / compared[:, 2].bincount(), persistent=False)

    def initial_loss(self, batch_size: int) -> float:
        """Each of the eight positions is as likely: ln 8."""
        return math.log(len(DIRECTIONS))

    def make_views(self, images: Images, keys: Tensor) -> Tensor:
        """The patches of each image in reading order: ``[batch, 9, channels, patch_size, patch_size]``."""
        return self.make_patches(images, keys)

    def loss(self, views: Tensor, context: StepContext) -> StepOutput:
        """Cross entropy over the eight positions; ``position_top1`` is the accuracy (chance: 0.125)."""
        features = self.backbone(views.flatten(0, 1))
        first, second, direction = self.compared.unbind(dim=1)
        logits = full_precision(self.classifier(couple(features, GRID**2, first, second)))
        targets = direction.repeat(len(views))
        # mixing changes no target: the patches of both images have the same places
        loss = soft_cross_entropy(logits, soften(targets, smoothing=context.smoothing), self.class_weights)
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
