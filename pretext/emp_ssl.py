"""EMP-SSL: many small crops of an image agree, while the embeddings of the batch fill the space.

Tong, Chen, Ma, LeCun: "EMP-SSL: towards self-supervised learning in one training epoch", 2023, arXiv 2304.03977.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pretext.base import JointEmbeddingTask
from ssl_toolkit.losses import emp_ssl, most_coding_rate
from ssl_toolkit.step import StepContext, StepOutput


class EMPSSL(JointEmbeddingTask):
    """EMP-SSL: extreme multi-patch learning (Tong et al. 2023, arXiv 2304.03977, section 3).

    Each image is 16 to 20 small crops of a quarter of its area:
    ``views: {crop: {size: 64, count: 16, scale: [0.25, 0.25], ratio: [1, 1]}}`` of images of 128 px. Such a crop keeps
    the pixels that it has. The paper enlarges its crops to the size of the image, which costs four times as much.

    Args:
        projector_widths: Widths of the projector's hidden and output layers.
        invariance: The paper's lambda, at least 0 (the paper: 200): what the agreement of an image's crops weighs
            beside the coding rate, which is at most 0.9 a dimension of the embedding. A narrower embedding asks for
            less.
        distortion: The paper's epsilon squared, above 0 (the paper: 0.2): the error up to which embeddings are coded.
        **kwargs: See `pretext.base.JointEmbeddingTask` and `ssl_toolkit.task.Task`.
    """

    traits = JointEmbeddingTask.traits | {"batch_statistics"}

    def __init__(
        self,
        *,
        projector_widths: tuple[int, ...] = (2048, 512),
        invariance: float = 200.0,
        distortion: float = 0.2,
        **kwargs: Any,
    ) -> None:
        super().__init__(projector_widths=projector_widths, **kwargs)
        if not (invariance >= 0 and math.isfinite(invariance)):
            raise ValueError(f"model.invariance is {invariance}, expected a weight of at least 0")
        if not (distortion > 0 and math.isfinite(distortion)):
            raise ValueError(f"model.distortion is {distortion}, expected a number above 0")
        self.width = projector_widths[-1]
        self.invariance = invariance
        self.distortion = distortion

    @property
    def image_size(self) -> None:
        """The data's own: a crop shows a part of the image as it is, and the backbone is evaluated on the whole."""
        return None

    def initial_loss(self, batch_size: int) -> float:
        """Directions at random: those of n crops have a cosine of 1 / sqrt(n) with their mean."""
        return self.least_loss(batch_size) + self.invariance * (1 - len(self.sizes) ** -0.5)

    @property
    def initial_loss_margin(self) -> tuple[float, float]:
        """Crops may agree from the start, and images may lie in a few directions only, as random networks put them."""
        return self.invariance * (1 - len(self.sizes) ** -0.5), most_coding_rate(self.width, self.distortion)

    def least_loss(self, batch_size: int) -> float:
        """Crops agree, and N images lie at right angles: more than N of the dimensions they cannot fill."""
        filled = most_coding_rate(self.width, self.distortion, batch_size)
        return most_coding_rate(self.width, self.distortion) - filled

    def loss(self, views: tuple[Tensor, ...], context: StepContext) -> StepOutput:
        """The loss; ``coding_rate``, a fraction of the most, and the ``agreement`` of an image's crops, both 0 to 1."""
        features, embedded = self.embed(views)
        crops = torch.stack([embedded[number] for number in range(len(views))])
        loss, rate, agreement = emp_ssl(crops, self.invariance, self.distortion)
        return StepOutput(loss, features, {"coding_rate": rate, "agreement": agreement})
