"""`TeacherTask`: the base class of self-distillation, in which a student learns from an EMA teacher."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from pretext.base.joint_embedding import JointEmbeddingTask, by_view
from ssl_toolkit.modules import Backbone, EMATeacher
from ssl_toolkit.schedule import Progress, Scheduled, check_bounds, value_at


class TeacherTask(JointEmbeddingTask):
    """Base class of joint-embedding tasks with an EMA teacher. A new one defines `loss` only.

    Args:
        momentum: Of the teacher: what it keeps of itself in each step, 0 to 1. By default it rises to 1.
        export: Which backbone is exported and evaluated: ``student`` or ``teacher``.
        **kwargs: See `JointEmbeddingTask` and `ssl_toolkit.task.Task`.
    """

    traits = JointEmbeddingTask.traits | {"teacher"}

    def __init__(
        self,
        *,
        momentum: float | Scheduled = Scheduled(0.996, 1.0),
        export: Literal["student", "teacher"] = "student",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_bounds("model.momentum", momentum, 0, 1)
        if export not in ("student", "teacher"):
            raise ValueError(f"model.export is {export!r}, expected student or teacher")
        self.momentum = momentum
        self.export = export
        self.teacher = EMATeacher(backbone=self.backbone, projector=self.projector)

    @property
    def exported_backbone(self) -> Backbone:
        """The student's or the teacher's."""
        return self.teacher.network("backbone") if self.export == "teacher" else self.backbone

    def taught_pairs(self) -> list[tuple[int, int]]:
        """Each large view, which the teacher sees, with each other view, which the student sees."""
        return self.directed_pairs()

    def student_views(self) -> list[int]:
        """The views of which something is learned."""
        return sorted({student for _, student in self.taught_pairs()})

    def teach(self, views: tuple[Tensor, ...]) -> dict[int, Tensor]:
        """The teacher's embeddings of the views that it sees, by their numbers, without gradient.

        Args:
            views: As `make_views` gives them.

        Returns:
            Tensors of shape ``[batch, width]``.
        """
        passes = self.passes(sorted({teacher for teacher, _ in self.taught_pairs()}))
        return by_view(passes, [self.teacher(torch.cat([views[number] for number in group])) for group in passes])

    def after_optimizer_step(self, progress: Progress, kept: dict[str, Tensor]) -> None:
        """Moves the teacher towards the student."""
        self.teacher.update(value_at(self.momentum, progress))
