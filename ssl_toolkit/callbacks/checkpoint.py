"""Checkpoint callback: when the state of a run is saved, and when a signal ends the run."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer, callbacks

from ssl_toolkit.callbacks.early_stopping import EarlyStopping
from ssl_toolkit.callbacks.weight_average import trained_weights
from ssl_toolkit.distributed.collectives import all_reduce_max
from ssl_toolkit.errors import CANNOT_WRITE
from ssl_toolkit.io.atomic import remove_with_checksum
from ssl_toolkit.run_folder import CHECKPOINTS
from ssl_toolkit.runtime.preemption import Preemption

# failures to save in a row after which a run stops: what is not saved is lost
_MOST_FAILURES = 3
_FIRST_SECONDS = 60.0
_BYTES_PER_SECOND = 2e8


class Checkpoint(callbacks.Checkpoint):
    """Checkpointing: saves the state of a run, so that it can be resumed; the end of the run is always saved.

    It also ends the run, with its state saved, when the system asks for the machine (see `Preemption`).

    Args:
        every_minutes: Minutes between two checkpoints, above 0.
        every_n_steps: Optimizer steps between two checkpoints, instead of minutes.
        keep: How many of the newest are kept, at least 1.
    """

    def __init__(self, every_minutes: float = 5.0, every_n_steps: int | None = None, keep: int = 2) -> None:
        if every_minutes <= 0 or (every_n_steps is not None and every_n_steps < 1) or keep < 1:
            raise ValueError("checkpoint: every_minutes must be above 0, every_n_steps and keep at least 1")
        self.every_minutes = every_minutes
        self.every_n_steps = every_n_steps
        self.keep = keep
        self.preemption = Preemption()
        self._last_saved = 0.0
        self._last_step = -1
        self._step_on_disk = -1
        self._waiting = False
        self._signal = 0
        self._seconds: float | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock, and listens for signals."""
        self._last_saved = time.monotonic()
        self._last_step = self._step_on_disk = trainer.global_step
        self.preemption.listen()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Mends what Lightning counts.

        In a run that was resumed at the end of an epoch it does not count the beginning of the next one. A checkpoint
        in the middle of that one would then say that it is over, and the place in it would be lost at the second
        resume.
        """
        progress: Any = trainer.fit_loop.epoch_progress
        if progress.current.ready == progress.current.processed:
            progress.increment_ready()
            progress.increment_started()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Saves when it is time, between two optimizer steps and never between the micro-batches of one."""
        step = trainer.global_step
        if step == self._last_step:
            return
        self._last_step = step
        due, number = self._agree(trainer)
        if self.every_n_steps:
            due = step % self.every_n_steps == 0
        due = due or bool(number) or step >= trainer.estimated_stepping_batches
        # a resumed run does not measure again what an epoch's end measures: early stopping has to know it first
        waiting = due and trainer.is_last_batch and _may_stop_early(trainer)
        # a signal: who sent it may not wait for that, so what there is is saved now, and again then
        if due and (number or not waiting):
            self._save(trainer)
        if number and not waiting:
            self.preemption.leave(trainer, number)
        self._waiting, self._signal = waiting, number

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves what was put off, and a run that stops before its time."""
        if self._waiting or (trainer.should_stop and trainer.global_step != self._step_on_disk):
            self._save(trainer)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leaves for a signal of the last epoch, whose figures are written now."""
        self._leave_late(trainer)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Ends the run if a signal came; the resumed run validates again."""
        if not self.preemption.is_listening or not (number := self._agree(trainer)[1]):
            return
        if trainer.global_step >= trainer.estimated_stepping_batches and _may_stop_early(trainer):
            # a run that has made all of its steps is not entered again: its last measurement is made now or never
            self._waiting, self._signal = True, number
            return
        _stop_within_step(trainer)
        with trained_weights(trainer, pl_module):
            self._save(trainer)
        self.preemption.leave(trainer, number)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leaves the signals to others, and the run for one that has come."""
        self._leave_late(trainer)
        self.preemption.stop_listening()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leaves the signals to others."""
        if not self.preemption.is_held:
            self.preemption.stop_listening()

    def _leave_late(self, trainer: Trainer) -> None:
        if self._signal:
            self.preemption.leave(trainer, self._signal)

    def _agree(self, trainer: Trainer) -> tuple[bool, int]:
        """Whether it is time to save, by rank zero's clock, and the signal that any process got; 0 for none."""
        due = trainer.is_global_zero and self._is_time(trainer)
        if trainer.world_size == 1:
            return due, self.preemption.number
        found = torch.tensor([int(due), self.preemption.number], device=trainer.strategy.root_device)
        due, number = all_reduce_max(found).tolist()
        return bool(due), number

    def _is_time(self, trainer: Trainer) -> bool:
        """Whether so much was done since the last checkpoint that it is worth one."""
        since, pause = time.monotonic() - self._last_saved, 60 * self.every_minutes
        if since > pause:
            return True
        # what a run has done so far should not be lost with its first minutes, where that costs next to nothing
        if self._seconds is None:
            self._seconds = _seconds_to_save(trainer)
        if since < 100 * self._seconds:
            return False
        is_first = self._step_on_disk == 0 and since > _FIRST_SECONDS
        return is_first or (trainer.current_epoch == 0 and trainer.is_last_batch)

    def _save(self, trainer: Trainer) -> None:
        start = time.monotonic()
        folder = Path(trainer.default_root_dir) / CHECKPOINTS
        trainer.save_checkpoint(folder / f"step-{trainer.global_step:010d}.ckpt")
        self._last_saved, self._step_on_disk = time.monotonic(), trainer.global_step
        self._seconds = self._last_saved - start
        self._waiting = False
        # only rank zero writes, but all have to stop
        failures = trainer.strategy.broadcast(getattr(trainer.strategy.checkpoint_io, "failures", 0))
        if failures >= _MOST_FAILURES:
            print(f"nothing could be saved {failures} times in a row: the run stops", file=sys.stderr)
            raise SystemExit(CANNOT_WRITE)
        if trainer.is_global_zero:
            for old in sorted(folder.glob("step-*.ckpt"))[: -self.keep]:
                remove_with_checksum(old)


def _seconds_to_save(trainer: Trainer) -> float:
    """An estimate for a checkpoint that was never made: weights and two moments, to a disk that is not quick."""
    num_bytes = sum(each.numel() * each.element_size() for each in trainer.lightning_module.parameters())
    return 0.05 + 3 * num_bytes / _BYTES_PER_SECOND


def _stop_within_step(trainer: Trainer) -> None:
    """Has Lightning repeat the validation at hand: it leaves one out that was stopped between two of its batches."""
    progress: Any = trainer.fit_loop.epoch_loop.val_loop.batch_progress
    progress.total.processed = progress.total.completed
    progress.current.reset()


def _may_stop_early(trainer: Trainer) -> bool:
    every = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue] - set out of its sight
    return any(isinstance(each, EarlyStopping) and each.patience is not None for each in every)
