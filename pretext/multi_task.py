"""Multi-task pretraining: several pretext tasks share one backbone, each as it is.

Doersch, Zisserman: "Multi-task self-supervised visual learning", ICCV 2017, arXiv 1708.07860.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pretext.base import PretextTask
from pretext.base.task import framed
from ssl_toolkit.augment import RandomView
from ssl_toolkit.batch import Images
from ssl_toolkit.errors import nearest
from ssl_toolkit.modules import Backbone
from ssl_toolkit.optim import LRScaling, OptimizerSpec
from ssl_toolkit.schedule import Progress, Schedule, Scheduled, check_bounds, value_at
from ssl_toolkit.step import StepContext, StepOutput
from ssl_toolkit.task import Trait

# of Lightning's hooks, what is called of each task
_HOOKS = ("on_before_optimizer_step",)


class TaskFactory(Protocol):
    """What makes a task; the arguments of this call are those of the multi-task and can't be given to a part."""

    def __call__(
        self,
        *,
        backbone: Backbone,
        optimizer: OptimizerSpec,
        schedule: Schedule,
        seed: int = 0,
        lr_scaling: LRScaling = "none",
        reference_batch_size: int = 256,
        init: Any = None,
        regularizers: Any = None,
        sync_batchnorm: bool = True,
        memory_format: Any = "channels_last",
        gradient_checkpointing: bool = False,
        compile: bool = False,
        rules: Any = None,
        weight_decay_schedule: Any = None,
    ) -> PretextTask:
        """Makes the task."""
        ...


class MultiTask(PretextTask):
    """Multi-task pretraining: pretext tasks that share the backbone, and the weighted sum of their losses (Doersch and
    Zisserman 2017, arXiv 1708.07860).

    Each task is what it is alone, with its own views, projector, teacher or queue, and a forward pass of its own.
    Optimizer, schedule and all else that concerns the run are those of the multi-task. What it logs of a task begins
    with the task's name.

    Args:
        tasks: The tasks by names of yours, as ``class_path`` and ``init_args``.
        weights: What each loss is multiplied with, from 0, by the same names; 1 for those that are left out. A schedule
            moves it over the run: ``{value: 1, end: 0}``.
        **kwargs: See `ssl_toolkit.task.Task`.
    """

    def __init__(
        self, *, tasks: dict[str, TaskFactory], weights: dict[str, float | Scheduled] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        if not tasks:
            raise ValueError("model.tasks is empty, expected at least one task by its name")
        for name in tasks:
            if not name.isidentifier():
                raise ValueError(f"model.tasks has the name {name!r}, expected letters, digits and underscores")
            if hasattr(nn.ModuleDict, name) or name == "training":
                raise ValueError(f"model.tasks has the name {name!r}, which means something else; choose another one")
        for name, weight in (weights or {}).items():
            if name not in tasks:
                raise ValueError(
                    f"model.weights has {name!r}, which is none of model.tasks{nearest(name, list(tasks))}"
                )
            check_bounds(f"model.weights.{name}", weight, 0, math.inf)
        shared = {"optimizer": self.optimizer_spec, "schedule": self.schedule, "seed": self.seed}
        trained = [each for each in self.backbone.parameters() if each.requires_grad]
        used: set[int] = set()
        made: dict[str, PretextTask] = {}
        for name, factory in tasks.items():
            made[name] = _make(name, factory, self.backbone, shared)
            # what one task has no use for, another may train
            used |= {id(each) for each in trained if each.requires_grad}
            for each in trained:
                each.requires_grad_(True)
        for each in trained:
            each.requires_grad_(id(each) in used)
        self.tasks = nn.ModuleDict(made)
        self.weights = {name: (weights or {}).get(name, 1.0) for name in made}
        several: set[Trait] = {"several_rows", "several_sizes"}
        self.traits = frozenset(several).union(*(each.traits for each in made.values()))
        self.views_may_shrink = all(each.views_may_shrink for each in made.values())
        self.stops_gradients = any(each.stops_gradients for each in made.values())
        if len([each for each in made.values() if each.exported_backbone is not self.backbone]) > 1:
            raise ValueError(
                "several of model.tasks export their teacher's backbone; set export: student in all but one"
            )

    @property
    def parts(self) -> dict[str, Any]:
        """The tasks by their names."""
        return dict(self.tasks.items())

    @property
    def exported_backbone(self) -> Backbone:
        """The shared backbone, or that of the teacher which a task exports."""
        taught = [each.exported_backbone for each in self.parts.values()]
        return next((each for each in taught if each is not self.backbone), self.backbone)

    @property
    def random_views(self) -> list[tuple[RandomView, int]]:
        """Those of all tasks."""
        return [each for task in self.parts.values() for each in task.random_views]

    def check(self) -> None:
        """As in `Task`, for each task too."""
        super().check()
        for task in self.parts.values():
            task.check()

    def check_batch(self, size: int) -> None:
        """As each task does."""
        for task in self.parts.values():
            task.check_batch(size)

    def check_data(self, data: Any) -> None:
        """As each task does."""
        super().check_data(data)
        for task in self.parts.values():
            task.check_data(data)

    def initial_loss(self, batch_size: int) -> float | None:
        """The weighted sum of those of the tasks, if all have one."""
        return self._sum([task.initial_loss(batch_size) for task in self.parts.values()])

    @property
    def initial_loss_margin(self) -> tuple[float, float]:
        """The weighted sums of those of the tasks."""
        below, above = zip(*(task.initial_loss_margin for task in self.parts.values()), strict=True)
        return self._sum(below) or 0.0, self._sum(above) or 0.0

    def least_loss(self, batch_size: int) -> float:
        """The weighted sum of those of the tasks."""
        return self._sum([task.least_loss(batch_size) for task in self.parts.values()]) or 0.0

    def least_loss_of(self, batch: Any) -> float:
        """Likewise."""
        return self._sum([task.least_loss_of(batch) for task in self.parts.values()]) or 0.0

    def make_views(self, images: Images, keys: Tensor) -> dict[str, Any]:
        """The views of each task, by its name."""
        return {name: task.make_views(images, keys) for name, task in self.parts.items()}

    def view_pictures(self, views: dict[str, Any]) -> Tensor:
        """The pictures of each task, one after the other."""
        pictures = [each for name, task in self.parts.items() for each in task.view_pictures(views[name]).unbind(1)]
        return torch.stack(framed(pictures), dim=1)

    def loss(self, views: dict[str, Any], context: StepContext) -> StepOutput:
        """The weighted sum; each task's own loss and metrics are logged with its name before theirs."""
        outputs = {name: task.loss(views[name], context) for name, task in self.parts.items()}
        loss = sum(value_at(self.weights[name], context.progress) * each.loss for name, each in outputs.items())
        assert isinstance(loss, Tensor)
        metrics = {
            f"{name}_{metric}": value
            for name, each in outputs.items()
            for metric, value in {"loss": each.loss.detach(), **each.metrics}.items()
        }
        kept = {f"{name}.{key}": value for name, each in outputs.items() for key, value in each.kept.items()}
        return StepOutput(loss, torch.cat([each.features for each in outputs.values()]), metrics, kept)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """As in `Task`, for each task too."""
        super().on_before_optimizer_step(optimizer)
        for task in self.parts.values():
            task.progress = self.progress
            task.on_before_optimizer_step(optimizer)

    def after_optimizer_step(self, progress: Progress, kept: dict[str, Tensor]) -> None:
        """Has each task move what follows its weights."""
        for name, task in self.parts.items():
            own = {key.removeprefix(f"{name}."): value for key, value in kept.items() if key.startswith(f"{name}.")}
            task.after_optimizer_step(progress, own)

    def _sum(self, numbers: Any) -> float | None:
        """The sum of the tasks' numbers, with the weights at the start."""
        if any(each is None for each in numbers):
            return None
        return sum(
            value_at(weight, Progress()) * each for weight, each in zip(self.weights.values(), numbers, strict=True)
        )


def _make(name: str, factory: Callable[..., PretextTask], backbone: Backbone, shared: dict[str, Any]) -> PretextTask:
    """A task on a backbone that is not its own, so that it has no part in the task's state."""
    try:
        task = factory(backbone=backbone, **shared)
    except ValueError as error:
        raise ValueError(f"model.tasks.{name}: {error}") from None
    if isinstance(task, MultiTask):
        raise ValueError(f"model.tasks.{name} is a MultiTask; give its tasks themselves")
    for hook in (each for each in dir(PretextTask) if each.startswith("on_") and each not in _HOOKS):
        if getattr(type(task), hook) is not getattr(PretextTask, hook):
            raise ValueError(
                f"model.tasks.{name}: {type(task).__name__} has {hook} of its own, which is not called here"
            )
    del task.backbone
    object.__setattr__(task, "backbone", backbone)
    return task
