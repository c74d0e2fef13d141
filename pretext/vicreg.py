"""VICReg: embeddings of an image's views agree, each dimension varies, and no two dimensions vary together.

Bardes, Ponce, LeCun: "VICReg: variance-invariance-covariance regularization for self-supervised learning", ICLR 2022,
arXiv 2105.04906.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pretext.base import JointEmbeddingTask
from ssl_toolkit.losses import invariance, spread
from ssl_toolkit.step import StepContext, StepOutput


class VICReg(JointEmbeddingTask):
    """VICReg: variance, invariance, covariance (Bardes et al. 2022, arXiv 2105.04906, equation 6).

    The terms are weighted as in the authors' code: the variance term is the mean over both views, the covariance term
    their sum. Of more views the invariance is the mean over the pairs, and the covariance term twice the mean over the
    views. The two views of that code differ: ``views: {first: {preset: byol_first}, second: {preset: byol_second}}``.

    Args:
        projector_widths: Widths of the projector's hidden and output layers (the paper: 8192, three times).
        invariance_weight: The paper's lambda, from 0 (25 there).
        variance_weight: The paper's mu, from 0 (25 there).
        covariance_weight: The paper's nu, from 0 (1 there).
        **kwargs: See `pretext.base.JointEmbeddingTask` and `ssl_toolkit.task.Task`.
    """

    traits = JointEmbeddingTask.traits | {"batch_statistics"}
    # the loss does not depend on it: its gradient would be rounding alone, of which Adam makes steps of full length
    projector_has_bias = False

    def __init__(
        self,
        *,
        projector_widths: tuple[int, ...] = (2048, 2048, 2048),
        invariance_weight: float = 25.0,
        variance_weight: float = 25.0,
        covariance_weight: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(projector_widths=projector_widths, **kwargs)
        weights = {"invariance": invariance_weight, "variance": variance_weight, "covariance": covariance_weight}
        for name, weight in weights.items():
            if not weight >= 0:
                raise ValueError(f"model.{name}_weight is {weight}, expected at least 0")
        self.weights = weights
        self.width = projector_widths[-1]

    def initial_loss(self, batch_size: int) -> float:
        """Embeddings that vary little: views agree, and the variance term is near its greatest value of 1."""
        return self.weights["variance"]

    @property
    def initial_loss_margin(self) -> tuple[float, float]:
        """Dimensions may vary by 1 already, views differ by 2 on average, and dimensions correlate by up to 0.5."""
        above = 2 * self.weights["invariance"] + 0.5 * self.weights["covariance"] * (self.width - 1)
        return self.weights["variance"], above

    def least_loss(self, batch_size: int) -> float:
        """N samples allow a covariance of rank r = N - 1 and no identity of a larger width D.

        A matrix of rank r whose D variances are v has squares that add up to (D v)^2 / r or more, so that those of the
        covariances are at least D k v^2, k = D / r - 1. With s^2 = v the loss is at least mu (1 - s) + 2 nu k s^4, the
        least of which is at s^3 = mu / (8 nu k). Unequal variances are no better for nu of at most mu / 16, where this
        is convex in them; a larger nu makes no loss smaller. What is added to variances is left out.
        """
        variance, covariance = self.weights["variance"], self.weights["covariance"]
        excess = min(covariance, variance / 16) * max(0.0, self.width / max(1, batch_size - 1) - 1)
        if not excess:
            return 0.0
        std = min(1.0, (variance / (8 * excess)) ** (1 / 3))
        return variance * (1 - std) + 2 * excess * std**4

    def loss(self, views: tuple[Tensor, ...], context: StepContext) -> StepOutput:
        """The weighted sum of the three terms, which are the metrics."""
        features, embedded = self.embed(views)
        agreement = torch.stack([invariance(embedded[one], embedded[other]) for one, other in self.pairs()]).mean()
        spreads = [spread(each) for each in embedded.values()]
        lacking = torch.stack([each.variance for each in spreads]).mean()
        # the authors add up the covariances of both views, but not the variances
        between = 2 * torch.stack([each.covariance for each in spreads]).mean()
        terms = {"invariance": agreement, "variance": lacking, "covariance": between}
        loss = sum((self.weights[name] * each for name, each in terms.items()), start=torch.zeros_like(lacking))
        return StepOutput(loss, features, {name: each.detach() for name, each in terms.items()})
