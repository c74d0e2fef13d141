"""Fast-MoCo: patches of a view are encoded one by one, and combinations of them meet the teacher's whole view.

Ci, Lin, Bai, Ouyang: "Fast-MoCo: boost momentum-based contrastive learning with combinatorial patches", ECCV 2022,
arXiv 2207.08220.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from torch import Tensor

from pretext.base import TeacherTask
from pretext.base.joint_embedding import by_view
from ssl_toolkit.losses import info_nce, least_info_nce
from ssl_toolkit.modules import mlp
from ssl_toolkit.schedule import Progress, Scheduled, check_bounds, value_at
from ssl_toolkit.step import StepContext, StepOutput


class FastMoCo(TeacherTask):
    """Fast-MoCo: combinatorial patches (Ci et al. 2022, arXiv 2207.08220, section 3).

    The student's views are cut into a grid of patches, each of which passes the backbone by itself. The pooled features
    of every combination of some of them are averaged and embedded; each of these predictions picks the teacher's
    embedding of another whole view among those of the batch. So a view gives several samples to learn from, for the
    arithmetic of one.

    Args:
        projector_widths: Widths of the projector's hidden and output layers.
        predictor_width: Width of the predictor's hidden layer.
        temperature: Divides the similarities, above 0.
        grid: Patches along each side of a view, at least 2 (the paper: 2).
        combined: How many patches a combination has, 1 to all of them (the paper: 2 of 4, which makes 6).
        **kwargs: See `pretext.base.TeacherTask`, `pretext.base.JointEmbeddingTask` and `ssl_toolkit.task.Task`.
    """

    traits = TeacherTask.traits | {"batch_statistics"}
    # the normalisation of the predictor's hidden layer would take it away again: its gradient would be rounding alone
    projector_has_bias = False

    def __init__(
        self,
        *,
        projector_widths: tuple[int, ...] = (1024, 256),
        predictor_width: int = 1024,
        temperature: float | Scheduled = 0.2,
        grid: int = 2,
        combined: int = 2,
        **kwargs: Any,
    ) -> None:
        super().__init__(projector_widths=projector_widths, **kwargs)
        check_bounds("model.temperature", temperature, 0, math.inf, low_included=False)
        if grid < 2:
            raise ValueError(f"model.grid is {grid}, expected at least 2 patches along each side of a view")
        if not 1 <= combined <= grid**2:
            raise ValueError(f"model.combined is {combined}, expected 1 to {grid**2}, the patches of a view")
        self.predictor = mlp([projector_widths[-1], predictor_width, projector_widths[-1]])
        self.temperature = temperature
        self.grid = grid
        self.combinations = list(itertools.combinations(range(grid**2), combined))

    def initial_loss(self, batch_size: int) -> float:
        """The keys of the batch are equally likely: ln N."""
        return math.log(batch_size)

    @property
    def initial_loss_margin(self) -> tuple[float, float]:
        """Patch and view agree from the start, by up to 1 in the cosine; of two images they scatter by up to 0.25."""
        temperature = value_at(self.temperature, Progress())
        return 1 / temperature, 0.5 + 0.5 * (0.25 / temperature) ** 2

    def least_loss(self, batch_size: int) -> float:
        """Keys are met exactly, and lie as far apart as they can: at the corners of a regular simplex."""
        return least_info_nce(batch_size, value_at(self.temperature, Progress()))

    def check_data(self, data: Any) -> None:
        """As in `PretextTask`; and the smallest patch must not be too small."""
        super().check_data(data)
        self.backbone.check_size(min(self.sizes) // self.grid)

    def embed(self, views: tuple[Tensor, ...]) -> tuple[Tensor, dict[int, Tensor]]:
        """The backbone's features of all patches, and the embeddings of their combinations by the view's number.

        Args:
            views: As `make_views` gives them.

        Returns:
            Tensors of shape ``[num_views * batch * patches, num_features]``, and ``[batch, combinations, width]`` each.
        """
        passes = self.passes(self.student_views())
        features = [self.backbone(cut(torch.cat([views[number] for number in group]), self.grid)) for group in passes]
        combined = [combine(each.unflatten(0, (-1, self.grid**2)), self.combinations) for each in features]
        embedded = [self.projector(each.flatten(0, 1)).unflatten(0, each.shape[:2]) for each in combined]
        return torch.cat(features), by_view(passes, embedded)

    def loss(self, views: tuple[Tensor, ...], context: StepContext) -> StepOutput:
        """InfoNCE of each combination; ``key_top1`` is how often the right key is the nearest of the batch."""
        features, embedded = self.embed(views)
        taught = self.teach(views)
        predicted = {
            number: self.predictor(each.flatten(0, 1)).unflatten(0, each.shape[:2]) for number, each in embedded.items()
        }
        temperature = value_at(self.temperature, context.progress)
        found = [
            torch.stack(info_nce(queries, taught[teacher], temperature))
            for teacher, student in self.taught_pairs()
            for queries in predicted[student].unbind(dim=1)
        ]
        loss, key_top1 = torch.stack(found).mean(dim=0)
        return StepOutput(loss, features, {"key_top1": key_top1.detach()})


def cut(images: Tensor, grid: int) -> Tensor:
    """Patches of images, those of an image in a row, in reading order.

    Args:
        images: Of shape ``[batch, channels, side, side]``; what a grid of whole pixels leaves over is left out.
        grid: Patches along each side.

    Returns:
        Tensor of shape ``[batch * grid * grid, channels, side // grid, side // grid]``.
    """
    side = images.shape[-1] // grid
    patches = images.unfold(2, side, side).unfold(3, side, side)[:, :, :grid, :grid]
    return patches.permute(0, 2, 3, 1, 4, 5).flatten(0, 2)


def combine(parts: Tensor, combinations: list[tuple[int, ...]]) -> Tensor:
    """Means of the features of some parts.

    Args:
        parts: Of shape ``[batch, parts, features]``.
        combinations: The numbers of the parts that are averaged.

    Returns:
        Tensor of shape ``[batch, combinations, features]``.
    """
    each = parts.unbind(dim=1)
    return torch.stack([torch.stack([each[part] for part in chosen]).mean(dim=0) for chosen in combinations], dim=1)
