"""ReSSL: a strongly distorted view has to resemble former images as a weakly distorted one does.

Zheng, You, Wang, Qian, Zhang, Wang, Xu: "ReSSL: relational self-supervised learning with weak augmentation", NeurIPS
2021, arXiv 2107.09282.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pretext.base import TeacherTask
from ssl_toolkit.losses import soft_assignment_loss
from ssl_toolkit.modules import FeatureQueue
from ssl_toolkit.schedule import Progress, Scheduled, check_bounds
from ssl_toolkit.step import StepContext, StepOutput


class ReSSL(TeacherTask):
    """ReSSL: relational self-supervised learning (Zheng et al. 2021, arXiv 2107.09282, section 3).

    The teacher sees the first view, which is distorted weakly, the student all others. Both are compared with a queue
    of the teacher's embeddings of former batches, and the student learns the teacher's similarities, sharpened. No
    image is a negative.

    Args:
        projector_widths: Widths of the projector's hidden and output layers (the paper: 4096 and 512).
        temperature: Divides the student's similarities, above 0 (the paper: 0.1).
        teacher_temperature: Divides the teacher's, above 0 and below ``temperature`` (the paper: 0.04).
        queue_size: How many embeddings it holds (the paper: 131,072 for ImageNet, 4,096 for small images).
        momentum: Of the teacher, 0 to 1 (the paper: 0.999).
        **kwargs: See `pretext.base.TeacherTask`, `pretext.base.JointEmbeddingTask` and `ssl_toolkit.task.Task`.
    """

    traits = TeacherTask.traits | {"queue"}

    def __init__(
        self,
        *,
        projector_widths: tuple[int, ...] = (1024, 256),
        temperature: float = 0.1,
        teacher_temperature: float = 0.04,
        queue_size: int = 4096,
        momentum: float | Scheduled = 0.999,
        **kwargs: Any,
    ) -> None:
        super().__init__(projector_widths=projector_widths, momentum=momentum, **kwargs)
        check_bounds("model.temperature", temperature, 0, math.inf, low_included=False)
        if not 0 < teacher_temperature < temperature:
            raise ValueError(
                f"model.teacher_temperature is {teacher_temperature}, expected above 0 and below model.temperature "
                f"({temperature}), so that the teacher is surer than the student"
            )
        self.temperature = temperature
        self.teacher_temperature = teacher_temperature
        self.queue = FeatureQueue(queue_size, projector_widths[-1])

    def taught_pairs(self) -> list[tuple[int, int]]:
        """The first view with each other one."""
        return [(0, other) for other in range(1, len(self.sizes))]

    def initial_loss(self, batch_size: int) -> float:
        """Each vector of the queue is as likely: ln K."""
        return math.log(len(self.queue.features))

    @property
    def initial_loss_margin(self) -> tuple[float, float]:
        """Two views agree from the start, by up to 1 in the cosine; random vectors scatter by 1 / width."""
        width = self.queue.features.shape[1]
        return 1 / self.temperature, 0.5 + 0.5 / (width * self.temperature**2)

    def least_loss(self, batch_size: int) -> float:
        """About that of a student with the embeddings of a teacher that stands still; the queue is random."""
        width = self.queue.features.shape[1]
        spread, met = 0.5 / self.temperature**2, 1 / (self.temperature * self.teacher_temperature)
        return max(0.0, math.log(len(self.queue.features)) + (spread - met) / width)

    def loss(self, views: tuple[Tensor, ...], context: StepContext) -> StepOutput:
        """Cross entropy of the similarities; ``same_nearest`` is how often both have the same nearest vector."""
        features, embedded = self.embed(views)
        taught = self.teach(views)
        targets = (self.queue.similarities(taught[0]) / self.teacher_temperature).softmax(dim=1)
        losses, hits = [], []
        for _, student in self.taught_pairs():
            logits = self.queue.similarities(embedded[student]) / self.temperature
            losses.append(soft_assignment_loss(logits, targets))
            hits.append((logits.detach().argmax(dim=1) == targets.argmax(dim=1)).float().mean())
        metrics = {"same_nearest": torch.stack(hits).mean()}
        return StepOutput(torch.stack(losses).mean(), features, metrics, {"keys": taught[0]})

    def after_optimizer_step(self, progress: Progress, kept: dict[str, Tensor]) -> None:
        """Moves the teacher, and puts its embeddings into the queue."""
        super().after_optimizer_step(progress, kept)
        self.queue.enqueue(kept["keys"])
