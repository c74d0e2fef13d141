"""SupCon: SimCLR in which all views of a class are partners. It needs labels.

Khosla, Teterwak, Wang, Sarna, Tian, Isola, Maschinot, Liu, Krishnan: "Supervised contrastive learning", NeurIPS 2020,
arXiv 2004.11362.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pretext.base import JointEmbeddingTask
from ssl_toolkit.batch import Batch
from ssl_toolkit.losses import supcon
from ssl_toolkit.schedule import Progress, Scheduled, check_bounds, value_at
from ssl_toolkit.step import StepContext, StepOutput


class SupCon(JointEmbeddingTask):
    """SupCon: supervised contrastive learning (Khosla et al. 2020, arXiv 2004.11362, equation 2).

    The one task here that reads labels (``data.labels: folder``): the weights depend on those of the training images
    alone, ``val/loss`` on those of the validation images. An image without one has its other views as partners, so that
    few labels help where most images have none; with none at all it is SimCLR, and refused.

    Args:
        projector_widths: Widths of the projector's hidden and output layers (the paper: 2048 and 128).
        temperature: The paper's tau, above 0 (the paper: 0.1).
        **kwargs: See `pretext.base.JointEmbeddingTask` and `ssl_toolkit.task.Task`.
    """

    traits = JointEmbeddingTask.traits | {"batch_statistics", "labels"}

    def __init__(
        self, *, projector_widths: tuple[int, ...] = (512, 128), temperature: float | Scheduled = 0.1, **kwargs: Any
    ) -> None:
        super().__init__(projector_widths=projector_widths, **kwargs)
        check_bounds("model.temperature", temperature, 0, math.inf, low_included=False)
        self.temperature = temperature

    def initial_loss(self, batch_size: int) -> float:
        """Each of the 2N - 1 others is as likely: ln(2N - 1)."""
        return math.log(2 * batch_size - 1)

    @property
    def initial_loss_margin(self) -> tuple[float, float]:
        """Two views agree from the start, by up to 1 in the cosine; of two images they scatter by up to 0.25."""
        temperature = value_at(self.temperature, Progress())
        return 1 / temperature, 0.5 + 0.5 * (0.25 / temperature) ** 2

    def least_loss_of(self, batch: Batch) -> float:
        """The mean of ln P, where a view has P partners: each is then as likely as another, and nothing else is."""
        same = (batch.labels[:, None] == batch.labels) & (batch.labels >= 0)
        partners = (2 * same.sum(dim=1) - 1).clamp(min=1)
        return partners.double().log().mean().item()

    def loss(self, views: tuple[Tensor, ...], context: StepContext) -> StepOutput:
        """The mean over the pairs of views; ``partner_top1`` is how often the nearest is of the same class or image."""
        features, embedded = self.embed(views)
        temperature = value_at(self.temperature, context.progress)
        labels = context.batch.labels
        found = [
            torch.stack(supcon(embedded[one], embedded[other], labels, temperature)) for one, other in self.pairs()
        ]
        loss, partner_top1 = torch.stack(found).mean(dim=0)
        return StepOutput(loss, features, {"partner_top1": partner_top1.detach()})
