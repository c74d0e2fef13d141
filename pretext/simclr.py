"""SimCLR: two views of an image attract, views of different images repel.

Chen, Kornblith, Norouzi, Hinton: "A simple framework for contrastive learning of visual representations", ICML 2020,
arXiv 2002.05709.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pretext.base import JointEmbeddingTask
from ssl_toolkit.losses import info_nce, nt_xent
from ssl_toolkit.schedule import Progress, Scheduled, check_bounds, value_at
from ssl_toolkit.step import StepContext, StepOutput


class SimCLR(JointEmbeddingTask):
    """SimCLR: contrastive learning of views (Chen et al. 2020, arXiv 2002.05709, algorithm 1).

    Section 3 of the paper finds crops and colour distortion together essential. With a regularizer that mixes images it
    is i-Mix (Lee et al. 2021, arXiv 2010.08887): the first view is mixed, see `ssl_toolkit.losses.info_nce`.

    Args:
        projector_widths: Widths of the projector's hidden and output layers (the paper: num_features and 128).
        temperature: The paper's tau, above 0. Table 5: 0.1 for ImageNet; figure B.7: 0.5 for CIFAR-10.
        **kwargs: See `pretext.base.JointEmbeddingTask` and `ssl_toolkit.task.Task`.
    """

    takes_soft_targets = True
    traits = JointEmbeddingTask.traits | {"batch_statistics"}

    def __init__(
        self, *, projector_widths: tuple[int, ...] = (512, 128), temperature: float | Scheduled = 0.5, **kwargs: Any
    ) -> None:
        super().__init__(projector_widths=projector_widths, **kwargs)
        check_bounds("model.temperature", temperature, 0, math.inf, low_included=False)
        self.temperature = temperature

    def initial_loss(self, batch_size: int) -> float:
        """Each of the 2N - 1 others is as likely the partner: ln(2N - 1)."""
        return math.log(2 * batch_size - 1)

    @property
    def initial_loss_margin(self) -> tuple[float, float]:
        """Two views agree from the start, by up to 1 in the cosine; of two images they scatter by up to 0.25."""
        temperature = value_at(self.temperature, Progress())
        return 1 / temperature, 0.5 + 0.5 * (0.25 / temperature) ** 2

    def least_loss(self, batch_size: int) -> float:
        """Partners coincide, and the images lie as far apart as they can: at the corners of a regular simplex."""
        apart = batch_size / max(1, batch_size - 1)
        return math.log1p((2 * batch_size - 2) * math.exp(-apart / value_at(self.temperature, Progress())))

    def loss(self, views: tuple[Tensor, ...], context: StepContext) -> StepOutput:
        """NT-Xent of each pair of views, or i-Mix; ``pair_top1`` is how often the right partner is the nearest."""
        features, embedded = self.embed(views)
        temperature = value_at(self.temperature, context.progress)
        losses, hits = [], []
        for one, other in self.pairs():
            pair = embedded[one], embedded[other], temperature
            if context.mixing is not None and one == 0:
                loss, hit = info_nce(*pair, mixing=context.mixing, smoothing=context.smoothing)
            else:
                loss, hit = nt_xent(*pair, smoothing=context.smoothing)
            losses.append(loss)
            hits.append(hit)
        return StepOutput(torch.stack(losses).mean(), features, {"pair_top1": torch.stack(hits).mean()})
