"""MoCo v3: a student's predictions find their teacher's embeddings among those of the batch; there is no queue.

Chen, Xie, He: "An empirical study of training self-supervised vision transformers", ICCV 2021, arXiv 2104.02057.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pretext.base import TeacherTask
from ssl_toolkit.losses import info_nce, least_info_nce
from ssl_toolkit.modules import mlp
from ssl_toolkit.schedule import Progress, Scheduled, check_bounds, value_at
from ssl_toolkit.step import StepContext, StepOutput


class MoCoV3(TeacherTask):
    """MoCo v3: InfoNCE with a momentum encoder and a predictor (Chen et al. 2021, arXiv 2104.02057, algorithm 1).

    The keys of the batch, of all processes, are the negatives. Each view is predicted from every other one. As there
    the loss is scaled by twice the temperature, so that one learning rate suits different temperatures; unlike there it
    is the mean over both directions and not their sum.

    Args:
        projector_widths: Widths of the projector's hidden and output layers (the paper: 4096 and 256).
        predictor_width: Width of the predictor's hidden layer (the paper: 4096).
        temperature: Divides the similarities, above 0.
        **kwargs: See `pretext.base.TeacherTask`, `pretext.base.JointEmbeddingTask` and `ssl_toolkit.task.Task`.
    """

    traits = TeacherTask.traits | {"batch_statistics"}
    projector_ends_with_norm = True

    def __init__(
        self,
        *,
        projector_widths: tuple[int, ...] = (1024, 256),
        predictor_width: int = 1024,
        temperature: float | Scheduled = 0.2,
        **kwargs: Any,
    ) -> None:
        super().__init__(projector_widths=projector_widths, **kwargs)
        check_bounds("model.temperature", temperature, 0, math.inf, low_included=False)
        self.temperature = temperature
        self.predictor = mlp([projector_widths[-1], predictor_width, projector_widths[-1]])

    def initial_loss(self, batch_size: int) -> float:
        """Each of the N keys is as likely: ln N, times twice the temperature."""
        return 2 * value_at(self.temperature, Progress()) * math.log(batch_size)

    @property
    def initial_loss_margin(self) -> tuple[float, float]:
        """Views agree from the start, by up to 1 in the cosine; of two images they scatter by up to 0.25."""
        temperature = value_at(self.temperature, Progress())
        return 2.0, 2 * temperature * (0.5 + 0.5 * (0.25 / temperature) ** 2)

    def least_loss(self, batch_size: int) -> float:
        """Keys are met exactly, and lie as far apart as they can: at the corners of a regular simplex."""
        temperature = value_at(self.temperature, Progress())
        return 2 * temperature * least_info_nce(batch_size, temperature)

    def loss(self, views: tuple[Tensor, ...], context: StepContext) -> StepOutput:
        """The mean over all pairs of views; ``key_top1`` is how often the right key is the nearest."""
        features, embedded = self.embed(views)
        keys = self.teach(views)
        temperature = value_at(self.temperature, context.progress)
        queries = {number: self.predictor(each) for number, each in embedded.items()}
        found = [
            torch.stack(info_nce(queries[student], keys[teacher], temperature))
            for teacher, student in self.taught_pairs()
        ]
        loss, key_top1 = torch.stack(found).mean(dim=0)
        return StepOutput(2 * temperature * loss, features, {"key_top1": key_top1.detach()})
