"""NNCLR: the positive of a view is the nearest neighbour of the other view among former embeddings.

Dwibedi, Aytar, Tompson, Sermanet, Zisserman: "With a little help from my friends: nearest-neighbor contrastive learning
of visual representations", ICCV 2021, arXiv 2104.14548.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pretext.base import JointEmbeddingTask
from ssl_toolkit.losses import info_nce, least_info_nce
from ssl_toolkit.modules import FeatureQueue, mlp
from ssl_toolkit.schedule import Progress, Scheduled, check_bounds, value_at
from ssl_toolkit.step import StepContext, StepOutput


class NNCLR(JointEmbeddingTask):
    """NNCLR: nearest-neighbour contrastive learning (Dwibedi et al. 2021, arXiv 2104.14548, equation 3).

    A view's embedding is replaced by its nearest neighbour in a queue of former embeddings (the paper's support set),
    which is then found among the predictions for the other views of the batch. So another image stands for the same
    thing.

    Args:
        projector_widths: Widths of the projector's hidden and output layers (the paper: 2048, 2048 and 256).
        predictor_width: Width of the predictor's hidden layer (the paper: 4096).
        temperature: Divides the similarities, above 0 (the paper: 0.1).
        queue_size: How many embeddings it holds (the paper: 98,304 for 1.3 million images).
        **kwargs: See `pretext.base.JointEmbeddingTask` and `ssl_toolkit.task.Task`.
    """

    traits = JointEmbeddingTask.traits | {"batch_statistics", "queue"}
    projector_ends_with_norm = True
    # no gradient is taken through the neighbours, which depend on the weights
    stops_gradients = True

    def __init__(
        self,
        *,
        projector_widths: tuple[int, ...] = (1024, 1024, 256),
        predictor_width: int = 1024,
        temperature: float | Scheduled = 0.1,
        queue_size: int = 4096,
        **kwargs: Any,
    ) -> None:
        super().__init__(projector_widths=projector_widths, **kwargs)
        check_bounds("model.temperature", temperature, 0, math.inf, low_included=False)
        self.temperature = temperature
        self.predictor = mlp([projector_widths[-1], predictor_width, projector_widths[-1]])
        self.queue = FeatureQueue(queue_size, projector_widths[-1])

    def initial_loss(self, batch_size: int) -> float:
        """Each of the N predictions is as likely: ln N."""
        return math.log(batch_size)

    @property
    def initial_loss_margin(self) -> tuple[float, float]:
        """Cosines with a neighbour, which has nothing to do with the predictions yet, scatter by up to 0.25."""
        temperature = value_at(self.temperature, Progress())
        return 1 / temperature, 0.5 + 0.5 * (0.25 / temperature) ** 2

    def least_loss(self, batch_size: int) -> float:
        """Neighbours are met exactly, and lie as far apart as they can: at the corners of a regular simplex."""
        return least_info_nce(batch_size, value_at(self.temperature, Progress()))

    def loss(self, views: tuple[Tensor, ...], context: StepContext) -> StepOutput:
        """InfoNCE; ``neighbour_top1`` is how often the right prediction is the nearest to the neighbour."""
        features, embedded = self.embed(views)
        temperature = value_at(self.temperature, context.progress)
        predicted = {number: self.predictor(each) for number, each in embedded.items()}
        pairs = self.directed_pairs()
        neighbours = {number: self.queue.nearest(embedded[number]) for number in {target for target, _ in pairs}}
        found = [torch.stack(info_nce(neighbours[target], predicted[other], temperature)) for target, other in pairs]
        loss, top1 = torch.stack(found).mean(dim=0)
        # as published the queue gets one view alone, so that no image is in it twice
        kept = {"keys": embedded[self.large_views[0]]}
        return StepOutput(loss, features, {"neighbour_top1": top1.detach()}, kept)

    def after_optimizer_step(self, progress: Progress, kept: dict[str, Tensor]) -> None:
        """Puts the embeddings of the first large views into the queue."""
        self.queue.enqueue(kept["keys"])
