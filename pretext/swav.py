"""SwAV: each view predicts the prototypes to which another view of its image is assigned.

Caron, Misra, Mairal, Goyal, Bojanowski, Joulin: "Unsupervised learning of visual features by contrasting cluster
assignments", NeurIPS 2020, arXiv 2006.09882.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pretext.base import JointEmbeddingTask
from ssl_toolkit.losses import sinkhorn, soft_assignment_loss
from ssl_toolkit.modules import FeatureQueue, Prototypes
from ssl_toolkit.schedule import Progress, check_bounds
from ssl_toolkit.step import StepContext, StepOutput


class SwAV(JointEmbeddingTask):
    """SwAV: swapped assignments between views (Caron et al. 2020, arXiv 2006.09882, equation 2).

    The large views are assigned to prototypes so that all prototypes are used equally (Sinkhorn-Knopp, over all
    processes), and every other view predicts the assignment. Made for multi-crop: ``views: {global: {preset:
    large_crop, size: 96, count: 2}, local: {preset: small_crop, size: 48, count: 4}}``.

    Args:
        projector_widths: Widths of the projector's hidden and output layers (the paper: 2048 and 128).
        num_prototypes: How many, at least 2 (the paper: 3,000 for ImageNet's 1,000 classes).
        temperature: Divides the similarities in the prediction, above 0 (the paper: 0.1).
        epsilon: Of Sinkhorn-Knopp, above 0: small for hard assignments (the paper: 0.05).
        queue_size: Embeddings of former batches that take part in the assignment, for batches that are small beside the
            number of prototypes; 0 for none. One queue holds the embeddings of all large views.
        queue_after: Fraction of the run after which the queue takes part, once it is full, 0 to 1: before, its
            embeddings change too fast (the authors' code: from epoch 15 of 200 or more).
        frozen_until: Fraction of the run for which the prototypes stay as they are, 0 to 1 (the authors' code: the
            first epoch).
        **kwargs: See `pretext.base.JointEmbeddingTask` and `ssl_toolkit.task.Task`.
    """

    traits = JointEmbeddingTask.traits | {"batch_statistics", "queue"}
    # the assignments depend on the weights and are held constant
    stops_gradients = True
    queued: Tensor

    def __init__(
        self,
        *,
        projector_widths: tuple[int, ...] = (1024, 128),
        num_prototypes: int = 512,
        temperature: float = 0.1,
        epsilon: float = 0.05,
        queue_size: int = 1024,
        queue_after: float = 0.1,
        frozen_until: float = 0.01,
        **kwargs: Any,
    ) -> None:
        super().__init__(projector_widths=projector_widths, **kwargs)
        check_bounds("model.temperature", temperature, 0, math.inf, low_included=False)
        check_bounds("model.epsilon", epsilon, 0, math.inf, low_included=False)
        check_bounds("model.queue_after", queue_after, 0, 1)
        check_bounds("model.frozen_until", frozen_until, 0, 1)
        check_bounds("model.queue_size", queue_size, 0, math.inf)
        self.temperature = temperature
        self.epsilon = epsilon
        self.queue_after = queue_after
        self.frozen_until = frozen_until
        self.prototypes = Prototypes(projector_widths[-1], num_prototypes)
        self.queue = FeatureQueue(queue_size, projector_widths[-1]) if queue_size else None
        # how many of the queue's vectors are embeddings; the others are random
        self.register_buffer("queued", torch.zeros((), dtype=torch.int64) if queue_size else None)
        if self.queue is None:
            self.traits = self.traits - {"queue"}

    def initial_loss(self, batch_size: int) -> float:
        """Each prototype is as likely: ln K."""
        return math.log(len(self.prototypes.weight))

    @property
    def initial_loss_margin(self) -> tuple[float, float]:
        """Two views agree from the start, by up to 1 in the cosine; random vectors scatter by 1 / width."""
        width = self.prototypes.weight.shape[1]
        return 1 / self.temperature, 0.5 + 0.5 / (width * self.temperature**2)

    def least_loss(self, batch_size: int) -> float:
        """All prototypes are used equally, so N images that are fewer have K / N each, until the queue is full."""
        return math.log(max(1.0, len(self.prototypes.weight) / batch_size))

    def loss(self, views: tuple[Tensor, ...], context: StepContext) -> StepOutput:
        """Cross entropy with the assignments; ``prototype_top1`` is how often views agree on the nearest prototype."""
        features, embedded = self.embed(views)
        scores = {number: self.prototypes(each) for number, each in embedded.items()}
        assigned = {number: self._assign(scores[number], context.progress) for number in self.large_views}
        losses, hits = [], []
        for target, other in self.directed_pairs():
            losses.append(soft_assignment_loss(scores[other] / self.temperature, assigned[target]))
            hits.append((scores[other].argmax(dim=1) == assigned[target].argmax(dim=1)).float().mean())
        kept = {} if self.queue is None else {"keys": torch.stack([embedded[each] for each in self.large_views], dim=1)}
        return StepOutput(torch.stack(losses).mean(), features, {"prototype_top1": torch.stack(hits).mean()}, kept)

    @torch.no_grad()
    def _assign(self, scores: Tensor, progress: Progress) -> Tensor:
        if self.queue is None or progress.fraction < self.queue_after:
            return sinkhorn(scores, self.epsilon)
        is_full = self.queued >= len(self.queue.features)
        return sinkhorn(scores, self.epsilon, more=self.prototypes(self.queue.features), more_counts=is_full)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Leaves the prototypes as they are for a while."""
        super().on_before_optimizer_step(optimizer)
        if self.progress.fraction < self.frozen_until:
            self.prototypes.keep()

    def after_optimizer_step(self, progress: Progress, kept: dict[str, Tensor]) -> None:
        """Puts the embeddings of the large views into the queue."""
        self.prototypes.restore()
        if self.queue is not None:
            keys = kept["keys"].flatten(0, 1)
            self.queue.enqueue(keys)
            self.queued.add_(len(keys)).clamp_(max=len(self.queue.features))
