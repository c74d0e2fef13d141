"""`QueueTask`: the base class of contrastive learning with a teacher and a queue of its embeddings as negatives."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from pretext.base.teacher import TeacherTask
from ssl_toolkit.modules import FeatureQueue
from ssl_toolkit.schedule import Progress, Scheduled, check_bounds, value_at


class QueueTask(TeacherTask):
    """Base class of InfoNCE with a queue of negatives (He et al. 2020, arXiv 1911.05722; Chen et al. 2020, arXiv
    2003.04297). A new one defines `loss`, which keeps the teacher's embeddings as ``keys``.

    The negatives are the teacher's embeddings of former batches, so that their number has nothing to do with the batch.

    Args:
        projector_widths: Widths of the projector's hidden and output layers (the paper: 2048 and 128).
        temperature: Divides the similarities, above 0 (the paper: 0.2).
        queue_size: How many negatives (the papers: 65,536 for 1.3 million images; 4,096 are usual for CIFAR-10). In a
            queue that holds more than the data set, every image is among its own negatives.
        symmetric: Each view is a query for every other large one, which takes about twice the time of a step; else the
            first view is the query and the second the key, as published.
        momentum: Of the teacher, 0 to 1 (the paper: 0.999).
        **kwargs: See `TeacherTask`, `JointEmbeddingTask` and `ssl_toolkit.task.Task`.
    """

    traits = TeacherTask.traits | {"queue"}

    def __init__(
        self,
        *,
        projector_widths: tuple[int, ...] = (512, 128),
        temperature: float | Scheduled = 0.2,
        queue_size: int = 4096,
        symmetric: bool = False,
        momentum: float | Scheduled = 0.999,
        **kwargs: Any,
    ) -> None:
        super().__init__(projector_widths=projector_widths, momentum=momentum, **kwargs)
        check_bounds("model.temperature", temperature, 0, math.inf, low_included=False)
        if not symmetric and (self.large_views != [0, 1] or len(self.sizes) > 2):
            raise ValueError("model.symmetric is false, which is for two views of one size; set it to true")
        self.temperature = temperature
        self.symmetric = symmetric
        self.queue = FeatureQueue(queue_size, projector_widths[-1])

    def taught_pairs(self) -> list[tuple[int, int]]:
        """The key's and the query's view."""
        return super().taught_pairs() if self.symmetric else [(1, 0)]

    def initial_loss(self, batch_size: int) -> float:
        """The key and the K vectors of the queue are equally likely: ln(K + 1)."""
        return math.log(len(self.queue.features) + 1)

    @property
    def initial_loss_margin(self) -> tuple[float, float]:
        """Two views agree from the start, by up to 1 in the cosine; random vectors scatter by 1 / width."""
        temperature, width = value_at(self.temperature, Progress()), self.queue.features.shape[1]
        return 1 / temperature, 0.5 + 0.5 / (width * temperature**2)

    def least_loss(self, batch_size: int) -> float:
        """Keys are met exactly, and the mean of the queue is 0, so that no query is far from all of it (Jensen)."""
        return math.log1p(len(self.queue.features) * math.exp(-1 / value_at(self.temperature, Progress())))

    def after_optimizer_step(self, progress: Progress, kept: dict[str, Tensor]) -> None:
        """Moves the teacher, and puts its keys into the queue."""
        super().after_optimizer_step(progress, kept)
        self.queue.enqueue(kept["keys"].flatten(0, 1))
