"""EMA teacher for self-distillation: an exponential moving average of its student."""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from torch import Tensor, nn

from ssl_toolkit.distributed.dtensor import local_tensor


class EMATeacher(nn.Module):
    """EMA teacher: a copy of networks whose weights follow theirs, ``teacher = m * teacher + (1 - m) * student``.

    Mean teacher (Tarvainen and Valpola 2017, arXiv 1703.01780), the key encoder of MoCo (He et al. 2020, arXiv
    1911.05722, equation 2), the target network of BYOL (Grill et al. 2020, arXiv 2006.07733, equation 1). It needs no
    gradient, so no optimizer, weight decay, average of weights or DDP sees it. BatchNorm computes as in the student,
    with its own running statistics. A task re-synchronises it after its initialisations.

    Args:
        **students: The networks by name, in the order in which they compute.
    """

    def __init__(self, **students: nn.Module) -> None:
        super().__init__()
        # in a tuple, so that they are no parts of the teacher
        self._students = tuple(students.values())
        for name, student in students.items():
            self.add_module(name, copy.deepcopy(student).requires_grad_(False))

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """What the networks compute of ``x``, one after the other, without gradient."""
        for network in self.children():
            x = network(x)
        return x

    def network(self, name: str) -> Any:
        """The teacher's copy of a student."""
        return self.get_submodule(name)

    @torch.no_grad()
    def synchronize(self) -> None:
        """Makes the teacher equal to the student again, running statistics included."""
        for teacher, student in zip(self.children(), self._students, strict=True):
            for mine, its in zip(_tensors(teacher), _tensors(student), strict=True):
                mine.copy_(its)

    @torch.no_grad()
    def update(self, momentum: float) -> None:
        """Moves the weights towards the student's.

        Call it from `ssl_toolkit.task.Task.after_optimizer_step` and nowhere else: in a loss it would move twice under
        SAM and once a micro-batch, and in Lightning's own hooks after the checkpoint of the step.

        Args:
            momentum: m, from 0 (the student itself) to 1 (no move).
        """
        mine = [local_tensor(each) for teacher in self.children() for each in teacher.parameters()]
        its = [local_tensor(each) for student in self._students for each in student.parameters()]
        torch._foreach_lerp_(cast(Any, mine), cast(Any, its), 1 - momentum)


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]
