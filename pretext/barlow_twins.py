"""Barlow Twins: the cross-correlation of two views' embeddings is pushed towards the identity.

Zbontar, Jing, Misra, LeCun, Deny: "Barlow Twins: self-supervised learning via redundancy reduction", ICML 2021,
arXiv 2103.03230.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pretext.base import JointEmbeddingTask
from ssl_toolkit.losses import barlow_twins
from ssl_toolkit.step import StepContext, StepOutput


class BarlowTwins(JointEmbeddingTask):
    """Barlow Twins: redundancy reduction between views (Zbontar et al. 2021, arXiv 2103.03230, algorithm 1).

    The paper's two views differ: ``views: {first: {preset: byol_first}, second: {preset: byol_second}}``.

    Args:
        projector_widths: Widths of the projector's hidden and output layers (the paper: 8192, three times; its figure 4
            gains from every doubling). The loss begins at about the last of them, and grows with it.
        off_diagonal: The paper's lambda, 0 to 1: what the correlations between different dimensions weigh beside those
            of each dimension with itself.
        **kwargs: See `pretext.base.JointEmbeddingTask` and `ssl_toolkit.task.Task`.
    """

    traits = JointEmbeddingTask.traits | {"batch_statistics"}
    # the loss does not depend on it: its gradient would be rounding alone, of which Adam makes steps of full length
    projector_has_bias = False

    def __init__(
        self, *, projector_widths: tuple[int, ...] = (2048, 2048, 2048), off_diagonal: float = 0.005, **kwargs: Any
    ) -> None:
        super().__init__(projector_widths=projector_widths, **kwargs)
        if not 0 <= off_diagonal <= 1:
            raise ValueError(f"model.off_diagonal is {off_diagonal}, expected a weight of 0 to 1")
        self.width = projector_widths[-1]
        self.off_diagonal = off_diagonal

    def initial_loss(self, batch_size: int) -> float:
        """Nothing correlates but by chance: a squared correlation of N samples is 1 / (N - 1) on average."""
        chance = 1 / max(1, batch_size - 1)
        return self.width * (1 + chance + self.off_diagonal * (self.width - 1) * chance)

    @property
    def initial_loss_margin(self) -> tuple[float, float]:
        """From the start views agree a little (here up to a correlation of 0.6), and so do dimensions (up to 0.5)."""
        return 0.85 * self.width, (0.25 + 0.25 * self.off_diagonal * (self.width - 1)) * self.width

    def least_loss(self, batch_size: int) -> float:
        """N samples allow a correlation of rank N - 1 and no identity of a larger width D.

        A matrix of rank r whose diagonal is m on average has a sum of squares of at least (D m)^2 / r. With the excess
        k = D / r - 1 the loss is at least D ((1 - m)^2 + lambda k m^2), which is least at m = 1 / (1 + lambda k).
        """
        rank = min(self.width, batch_size - 1)
        if rank < 1:
            return float(self.width)
        excess = self.off_diagonal * (self.width / rank - 1)
        return self.width * excess / (1 + excess)

    def loss(self, views: tuple[Tensor, ...], context: StepContext) -> StepOutput:
        """The loss, and the correlations: ``agreement`` of a dimension with itself, ``redundancy`` with another one."""
        features, embedded = self.embed(views)
        found = [barlow_twins(embedded[one], embedded[other], self.off_diagonal) for one, other in self.pairs()]
        loss, agreement, redundancy = torch.stack([torch.stack(each) for each in found]).mean(dim=0)
        return StepOutput(loss, features, {"agreement": agreement, "redundancy": redundancy})
