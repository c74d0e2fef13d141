"""Measurement of a task: the figures of training, validation and test, over all batches and processes."""

from __future__ import annotations

import math
from typing import Any

from lightning import LightningModule

from ssl_toolkit.distributed.collectives import weighted_means
from ssl_toolkit.distributed.ranks import world_size
from ssl_toolkit.step import StepOutput
from ssl_toolkit.tracking.scalars import WeightedScalars, log_now


class MeasuredModule(LightningModule):
    """Measurement part of a `Task`: what its steps compute becomes the rows of the log.

    Every figure is that of all processes. One of validation and test is the mean over all samples; one of training the
    mean over the samples of a batch.

    Attributes:
        numbers: What callbacks have to say of the last step, for the rows of the log (`ssl_toolkit.tracking.scalars`).
    """

    def __init__(self) -> None:
        super().__init__()
        self.numbers: dict[str, float] = {}
        self._measured = self._own_step = WeightedScalars()

    def on_train_start(self) -> None:
        """Has a short run write a row in each epoch at least."""
        trainer: Any = self.trainer  # its interval is set out of pyright's sight
        lengths = [trainer.log_every_n_steps]
        if math.isfinite(trainer.num_training_batches):  # which is not known of a stream
            lengths.append(max(1, trainer.num_training_batches // trainer.accumulate_grad_batches))
        if trainer.max_steps > 0:
            lengths.append(trainer.max_steps)
        trainer.log_every_n_steps = int(min(lengths))

    def log_step(self, output: StepOutput, num: int) -> None:
        """Logs a batch of training; where there are several processes, only what a row is written of.

        Args:
            output: What was computed from it.
            num: How many samples it has in this process.
        """
        scalars = {"loss": output.loss.detach(), **output.metrics}
        if world_size() > 1:
            self._own_step = WeightedScalars()
            self._own_step.add("train", scalars, num)
            return
        for name, scalar in scalars.items():
            self.log(f"train/{name}", scalar, batch_size=num)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Logs the callbacks' numbers, if a row is about to be written; Lightning calls this after the callbacks."""
        every: int = getattr(self.trainer, "log_every_n_steps", 1)  # set out of pyright's sight
        if not ((every and self.global_step % every == 0) or self.trainer.should_stop):
            return
        numbers = self.numbers
        if world_size() > 1:
            numbers = self._own_step.means() | weighted_means({name: (each, 1) for name, each in numbers.items()})
        log_now(self, numbers)

    def measure(self, stage: str, output: StepOutput, num: int) -> None:
        """Counts a batch of validation or test in.

        Args:
            stage: ``val`` or ``test``.
            output: What was computed from it.
            num: How many samples it has in this process.
        """
        self._measured.add(stage, {"loss": output.loss, **output.metrics}, num)

    def on_validation_epoch_start(self) -> None:
        """Starts to measure."""
        self._measured = WeightedScalars()

    def on_validation_epoch_end(self) -> None:
        """Logs what was measured."""
        self._log_measured()

    def on_test_epoch_start(self) -> None:
        """Starts to measure."""
        self._measured = WeightedScalars()

    def on_test_epoch_end(self) -> None:
        """Logs what was measured."""
        self._log_measured()

    def _log_measured(self) -> None:
        for name, mean in self._measured.means().items():
            self.log(name, mean, batch_size=1, sync_dist=world_size() > 1)
