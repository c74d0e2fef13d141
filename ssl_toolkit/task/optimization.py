"""Optimization of a task: parameter groups, schedules, and the hook after each optimizer step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch.plugins.precision import Precision
from lightning.pytorch.utilities import GradClipAlgorithmType
from torch import Tensor

from ssl_toolkit.checkpoint.contents import steps_of_state
from ssl_toolkit.distributed.collectives import gather
from ssl_toolkit.optim import (
    Adam,
    AdamW,
    LRScaling,
    OptimizerSpec,
    ParameterRule,
    check_state,
    match_layout,
    parameter_groups,
    scaled_lr,
)
from ssl_toolkit.regularization import Regularizer
from ssl_toolkit.schedule import Progress, Schedule, Scheduled
from ssl_toolkit.task.measurement import MeasuredModule


class OptimizedModule(MeasuredModule):
    """Optimization part of a `Task`: makes the optimizer and its steps.

    Args:
        optimizer: See `Task`, as all arguments.
        schedule: Likewise.
        lr_scaling: Likewise.
        reference_batch_size: Likewise.
        regularizers: Likewise.
        rules: Likewise.
        weight_decay_schedule: Likewise.

    Attributes:
        progress: How far the run is.
    """

    def __init__(
        self,
        optimizer: OptimizerSpec,
        schedule: Schedule,
        lr_scaling: LRScaling,
        reference_batch_size: int,
        regularizers: Sequence[Regularizer],
        rules: Sequence[ParameterRule],
        weight_decay_schedule: Scheduled | None,
    ) -> None:
        super().__init__()
        scaled_lr(optimizer.lr, lr_scaling, reference_batch_size, reference_batch_size)  # a wrong name is found now
        self.optimizer_spec = optimizer
        self.schedule = schedule
        self.lr_scaling: LRScaling = lr_scaling
        self.reference_batch_size = reference_batch_size
        self.regularizers = regularizers
        self.rules = rules
        self.weight_decay_schedule = weight_decay_schedule
        self.progress = Progress()
        self._kept: list[dict[str, Tensor]] = []
        self._has_stepped = False
        self._steps_of_state = 0
        self._decay_factors: list[float] = []
        self._settings: list[dict[str, Any]] = []

    def lr_factor(self, name: str) -> float:
        """The factor on the learning rate of a parameter, by its name; 1 unless a task says otherwise."""
        return 1.0

    def lr_begin(self, name: str) -> float:
        """The fraction of the run before which a parameter's learning rate is 0, by its name; usually 0."""
        return 0.0

    def after_optimizer_step(self, progress: Progress, kept: dict[str, Tensor]) -> None:
        """Moves what follows the weights and is not trained: a teacher, a queue, a centre, prototypes.

        Called once for each optimizer step, right after it and before any callback, without gradient; not for a step
        that was skipped (`NonFinite`, the gradient scaling of float16).

        Args:
            progress: How far the run is; its fraction is 1 after the last step.
            kept: `StepOutput.kept` of all micro-batches and processes, in the order of the samples.
        """

    def learning_rate(self, batch_size: int) -> float:
        """The learning rate for a batch size, before the schedule's factor.

        Args:
            batch_size: Images of one optimizer step, over all processes and accumulated batches.
        """
        return scaled_lr(self.optimizer_spec.lr, self.lr_scaling, batch_size, self.reference_batch_size)

    def base_lr(self) -> float:
        """The learning rate of the trainer's batches, before the schedule's factor."""
        if self.lr_scaling == "none":  # their size does not matter
            return self.optimizer_spec.lr
        loader: Any = self.trainer.train_dataloader
        return self.learning_rate(loader.batch_size * self.trainer.world_size * self.trainer.accumulate_grad_batches)

    def configure_optimizers(self) -> dict[str, Any]:
        """Builds the optimizer and a scheduler that steps with it."""
        total_steps = self.trainer.estimated_stepping_batches
        if not math.isfinite(total_steps) or total_steps < 1:
            raise ValueError("the schedule needs the run's length: set --trainer.max_epochs or --trainer.max_steps")
        steps_per_epoch = self.trainer.num_training_batches / self.trainer.accumulate_grad_batches
        spec = self.optimizer_spec
        groups = parameter_groups(self, self.base_lr(), spec.weight_decay, self.lr_factor, self.rules, self.lr_begin)
        # kept here, because an optimizer that is resumed has the groups of the checkpoint
        self._decay_factors = [group["weight_decay_factor"] for group in groups]
        courses = [self._course(group, int(total_steps), steps_per_epoch) for group in groups]
        optimizer = spec.build(groups, fused=self._may_fuse())
        optimizer.register_load_state_dict_pre_hook(self._check_state)
        optimizer.register_load_state_dict_post_hook(match_layout)
        optimizer.register_step_post_hook(self._note_step)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, courses)
        self._settings = [
            {name: each[name] for name in each.keys() - {"params", "lr"}} for each in optimizer.param_groups
        ]
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _course(self, group: Mapping[str, Any], total_steps: int, steps_per_epoch: float) -> Callable[[int], float]:
        """The factor on a group's learning rate by the steps done."""
        begin = total_steps * group.get("begin", 0.0)

        def factor(step: int) -> float:
            if step < begin:
                return 0.0
            return 1.0 if group["constant_lr"] else self.schedule.factor(step, total_steps, steps_per_epoch)

        return factor

    def _check_state(self, optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
        """Called before an optimizer takes over a saved state."""
        try:
            check_state(optimizer, saved, self.optimizer_spec.build, self._steps_of_state > 0)
        except ValueError as error:
            raise ValueError(f"{self._checkpoint} does not fit this run: {error}") from None

    def _may_fuse(self) -> bool:
        """Whether the optimizer may be fused: in float16 it then unscales the gradients itself, too late to change.

        And it skips a step by itself, which only the GPU knows of, so nothing could follow the steps that were made.
        """
        changed = bool(self.trainer.gradient_clip_val) or any(each.changes_gradients for each in self.regularizers)
        too_late = self.trainer.precision == "16-mixed" and (changed or self._is_followed())
        # of the fused kernels, torch knows for these alone how to take sharded weights
        sharded = any(hasattr(each, "full_tensor") for each in self.parameters())
        unknown = sharded and not isinstance(self.optimizer_spec, Adam | AdamW)
        return self.device.type in ("cpu", "cuda") and not too_late and not unknown

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clips the gradients by their norm or their values (``trainer.gradient_clip_val`` and ``_algorithm``).

        Lightning's own way refuses every fused optimizer in mixed precision. Only those of float16 unscale gradients
        themselves, and there none is fused if they are to be clipped.
        """
        algorithm = GradClipAlgorithmType(gradient_clip_algorithm or "norm")
        Precision.clip_gradients(self.trainer.precision_plugin, optimizer, gradient_clip_val or 0.0, algorithm)

    def on_train_start(self) -> None:
        """Forgets what a training that was broken off has left, and trains with the settings of this start.

        What is restored of an optimizer and its scheduler has those that the checkpoint was taken with.
        """
        super().on_train_start()
        self._kept = []
        if not self._settings:  # a task that makes its optimizer by itself
            return
        optimizer, scheduler = self.optimizers(use_pl_optimizer=False), self.lr_schedulers()
        assert isinstance(optimizer, torch.optim.Optimizer)
        assert isinstance(scheduler, torch.optim.lr_scheduler.LambdaLR)
        scheduler.base_lrs = [settings["initial_lr"] for settings in self._settings]
        for group, settings, factor in zip(optimizer.param_groups, self._settings, scheduler.lr_lambdas, strict=True):
            group |= settings
            group["lr"] = settings["initial_lr"] * factor(scheduler.last_epoch)

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, *arguments: Any, **named: Any) -> None:
        """Makes the step, and then moves what follows it."""
        if self.weight_decay_schedule is not None:
            decay = self.weight_decay_schedule.at(self.progress)
            for group, factor in zip(optimizer.param_groups, self._decay_factors, strict=True):
                group["weight_decay"] = decay * factor
        self._has_stepped = False
        super().optimizer_step(epoch, batch_idx, optimizer, *arguments, **named)
        kept, self._kept = self._kept, []
        # Lightning counts the step after this
        self.progress = self._progress(self.global_step + 1)
        if self._has_stepped and self._is_followed():
            with torch.no_grad():
                self.after_optimizer_step(self.progress, _in_order(kept))

    def _note_step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """Called when an optimizer has made a step; one without any gradient was skipped."""
        parameters = (each for group in optimizer.param_groups for each in group["params"])
        self._has_stepped = any(each.grad is not None for each in parameters)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Notes how far the run is."""
        checkpoint["progress"] = list(self.progress)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """What is computed outside of a training is computed as at the checkpoint's step."""
        self.progress = Progress(*checkpoint.get("progress", Progress()))
        self._steps_of_state = steps_of_state(checkpoint)
        own = type(self).configure_optimizers is OptimizedModule.configure_optimizers
        if own and any("lr_lambdas" not in each for each in checkpoint.get("lr_schedulers", ())):
            raise ValueError(f"{self._checkpoint} does not fit this run: its lr_schedulers lack lr_lambdas")

    @property
    def _checkpoint(self) -> str:
        """What is resumed, for messages."""
        return str(self.trainer.ckpt_path or "the checkpoint")

    def _progress(self, step: int) -> Progress:
        total_steps = int(self.trainer.estimated_stepping_batches)
        per_epoch = self.trainer.num_training_batches / self.trainer.accumulate_grad_batches
        return Progress(step, total_steps, per_epoch)

    def _is_followed(self) -> bool:
        """Whether something follows the optimizer's steps."""
        return type(self).after_optimizer_step is not OptimizedModule.after_optimizer_step


def _in_order(kept: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """What was kept of all micro-batches and processes, in the order of the samples.

    A micro-batch is divided among the processes, so the order is that of the micro-batches, and in each that of the
    ranks.
    """
    ordered = {}
    for name in kept[0] if kept else ():
        own = torch.stack([each[name] for each in kept])
        everywhere = gather(own).unflatten(0, (-1, len(own)))
        ordered[name] = everywhere.transpose(0, 1).flatten(0, 2)
    return ordered
