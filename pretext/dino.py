"""DINO: a student predicts its teacher's distribution over prototypes, centred and sharpened.

Caron, Touvron, Misra, Jégou, Mairal, Bojanowski, Joulin: "Emerging properties in self-supervised vision transformers",
ICCV 2021, arXiv 2104.14294.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor

from pretext.base import TeacherTask
from ssl_toolkit.losses import entropy, soft_assignment_loss
from ssl_toolkit.modules import EMATeacher, Prototypes
from ssl_toolkit.schedule import Progress, Scheduled, check_bounds, value_at
from ssl_toolkit.step import StepContext, StepOutput


class DINO(TeacherTask):
    """DINO: self-distillation with no labels (Caron et al. 2021, arXiv 2104.14294, algorithm 1).

    Two things keep the teacher from one answer for all images: its mean over former batches is subtracted (centring),
    which alone would end in an even distribution, and its temperature is low (sharpening), which alone would end in a
    single prototype. Made for multi-crop: the teacher sees the large views, the student all.

    Args:
        projector_widths: Widths of the projector's hidden and output layers (the paper: 2048, 2048 and 256). It has the
            BatchNorm and ReLU of the other tasks; the paper's has GELU.
        num_prototypes: Size of the distributions, at least 2 (the paper: 65,536).
        temperature: Of the student, above 0 (the paper: 0.1).
        teacher_temperature: Of the teacher, above 0 (the paper: 0.04 to 0.07, rising for 30 epochs).
        centre_momentum: What the centre keeps of itself in each step, 0 to 1 (the paper: 0.9).
        frozen_until: Fraction of the run for which the prototypes stay as they are, 0 to 1 (the authors' code: the
            first epoch).
        export: Which backbone is exported and evaluated: ``student`` or ``teacher``, which is better (figure 6).
        **kwargs: See `pretext.base.TeacherTask`, `pretext.base.JointEmbeddingTask` and `ssl_toolkit.task.Task`.
    """

    centre: Tensor

    def __init__(
        self,
        *,
        projector_widths: tuple[int, ...] = (1024, 1024, 256),
        num_prototypes: int = 4096,
        temperature: float = 0.1,
        teacher_temperature: float | Scheduled = 0.04,
        centre_momentum: float = 0.9,
        frozen_until: float = 0.01,
        export: Literal["student", "teacher"] = "teacher",
        **kwargs: Any,
    ) -> None:
        super().__init__(projector_widths=projector_widths, export=export, **kwargs)
        check_bounds("model.temperature", temperature, 0, math.inf, low_included=False)
        check_bounds("model.teacher_temperature", teacher_temperature, 0, math.inf, low_included=False)
        check_bounds("model.centre_momentum", centre_momentum, 0, 1)
        check_bounds("model.frozen_until", frozen_until, 0, 1)
        self.temperature = temperature
        self.teacher_temperature = teacher_temperature
        self.centre_momentum = centre_momentum
        self.frozen_until = frozen_until
        self.prototypes = Prototypes(projector_widths[-1], num_prototypes)
        self.teacher = EMATeacher(backbone=self.backbone, projector=self.projector, prototypes=self.prototypes)
        self.register_buffer("centre", torch.zeros(num_prototypes))

    def initial_loss(self, batch_size: int) -> float:
        """Each prototype is as likely: ln K."""
        return math.log(len(self.centre))

    @property
    def initial_loss_margin(self) -> tuple[float, float]:
        """Two views agree from the start, by up to 1 in the cosine; random vectors scatter by 1 / width."""
        width = self.prototypes.weight.shape[1]
        return 1 / self.temperature, 0.5 + 0.5 / (width * self.temperature**2)

    def least_loss(self, batch_size: int) -> float:
        """The entropy of a teacher that stands still among K directions of width D at random: ln K - 1 / (2 D t^2)."""
        temperature, width = value_at(self.teacher_temperature, Progress()), self.prototypes.weight.shape[1]
        return max(0.0, math.log(len(self.centre)) - 0.5 / (width * temperature**2))

    def loss(self, views: tuple[Tensor, ...], context: StepContext) -> StepOutput:
        """Cross entropy with the teacher's distributions, whose mean entropy is ``teacher_entropy``, in nats."""
        features, embedded = self.embed(views)
        logits = {number: self.prototypes(each) / self.temperature for number, each in embedded.items()}
        taught = self.teach(views)  # similarities, as the teacher ends with its prototypes
        temperature = value_at(self.teacher_temperature, context.progress)
        targets = {number: ((each - self.centre) / temperature).softmax(dim=1) for number, each in taught.items()}
        losses = [soft_assignment_loss(logits[student], targets[teacher]) for teacher, student in self.taught_pairs()]
        metrics = {"teacher_entropy": torch.stack([entropy(each) for each in targets.values()]).mean()}
        # batches are whole, so that the mean of their means is the mean
        kept = {"taught": torch.stack(list(taught.values())).mean(dim=(0, 1))[None]}
        return StepOutput(torch.stack(losses).mean(), features, metrics, kept)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Leaves the prototypes as they are for a while."""
        super().on_before_optimizer_step(optimizer)
        if self.progress.fraction < self.frozen_until:
            self.prototypes.keep()

    def after_optimizer_step(self, progress: Progress, kept: dict[str, Tensor]) -> None:
        """Moves the centre towards the teacher's mean (equation 4), and the teacher."""
        self.prototypes.restore()
        self.centre.lerp_(kept["taught"].mean(dim=0).to(self.centre.dtype), 1 - self.centre_momentum)
        super().after_optimizer_step(progress, kept)
