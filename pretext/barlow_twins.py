"""Barlow Twins: across two views of the images, each dimension of the embedding agrees with itself and no other.

Zbontar, Jing, Misra, LeCun, Deny: "Barlow Twins: self-supervised learning via redundancy reduction", ICML 2021,
arXiv 2103.03230.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pretext.base import TwoViewTask
from ssl_toolkit.distributed.collectives import all_reduce_sum, standardize
from ssl_toolkit.losses.full_precision import full_precision
from ssl_toolkit.task import StepOutput


class BarlowTwins(TwoViewTask):
    """Redundancy reduction between two views (Zbontar et al. 2021, arXiv 2103.03230, algorithm 1).

    Both views are drawn alike; the paper blurs all first views, and of the second ones a tenth, and solarizes a fifth.

    Args:
        projector_widths: Widths of the projector's hidden and output layers (the paper: 8192, three times; its figure 4
            gains from every doubling). The loss begins at about the last of them, and grows with it.
        off_diagonal: The paper's lambda, 0 to 1: what the correlations between different dimensions weigh beside those
            of each dimension with itself.
        **kwargs: See `pretext.base.TwoViewTask` and `ssl_toolkit.task.Task`.
    """

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

    def loss(self, views: tuple[Tensor, Tensor]) -> StepOutput:
        """The loss, and the correlations: ``agreement`` of a dimension with itself, ``redundancy`` with another one."""
        features, first, second = self.embed(views)
        loss, agreement, redundancy = barlow_twins(first, second, self.off_diagonal)
        return StepOutput(loss, features, {"agreement": agreement, "redundancy": redundancy})


def barlow_twins(first: Tensor, second: Tensor, off_diagonal: float = 0.005) -> tuple[Tensor, Tensor, Tensor]:
    """Equation 1 of Zbontar et al. 2021: (1 - c)^2 over the diagonal, weighted c^2 over the rest of the correlation.

    Args:
        first: Embeddings of the first views, of shape ``[batch, width]``.
        second: Embeddings of the second views, likewise.
        off_diagonal: The paper's lambda.

    Returns:
        The loss of the batches of all processes together, the mean of the correlation's diagonal, and the root mean
        square of the rest.
    """
    with torch.autocast(first.device.type, enabled=False):
        correlation = cross_correlation(full_precision(first), full_precision(second))
        width, diagonal = len(correlation), correlation.diagonal()
        # without its first element, each row of width + 1 ends with one of the diagonal
        rest = correlation.flatten()[1:].view(width - 1, width + 1)[:, :-1].square().sum()
        loss = (1 - diagonal).square().sum() + off_diagonal * rest
        redundancy = (rest.detach() / max(1, width * (width - 1))).sqrt()
    return loss, diagonal.detach().mean(), redundancy


def cross_correlation(first: Tensor, second: Tensor) -> Tensor:
    """Equation 2: how each dimension of the first embeddings correlates with each of the second, over all processes.

    Means, variances and products are those of the global batch, so that W processes compute what one would; the
    statistics of one process's share are those of a smaller batch, which has another loss. The products of the shares
    are summed, not the embeddings gathered: so each process computes its share of them, and batches may differ in size.
    There and back that is 4 width^2 numbers to send; gathered embeddings would be 6 batch x width and are fewer where
    the global batch is smaller than two thirds of the width, but then every process computes all of the products.

    Args:
        first: Of shape ``[batch, width]``, float32 at least.
        second: Likewise.

    Returns:
        Tensor of shape ``[width, width]``, the same in every process.
    """
    first, second = standardize(torch.cat([first, second], dim=1)).chunk(2, dim=1)
    return all_reduce_sum(first.T @ second) / all_reduce_sum(first.new_full((), len(first)))
