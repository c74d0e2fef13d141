"""Checkpoints, for resuming a run and nothing else."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer, callbacks
from lightning.pytorch.plugins.io import CheckpointIO

from ssl_toolkit.callbacks.early_stopping import EarlyStopping
from ssl_toolkit.run import CHECKPOINTS


class AtomicCheckpointIO(CheckpointIO):
    """Writes a checkpoint beside its target and renames it there.

    A process killed at any moment leaves the old file or the new one, never a part: Lightning's own way goes through
    the system's temporary folder, and on another file system its last step is a copy over the old file.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Saves, flushes to the disk, and renames."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        for orphan in target.parent.glob(".*.partial"):
            orphan.unlink(missing_ok=True)
        partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
        with partial.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(target)
        folder = os.open(target.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Loads tensors and plain data; a file that holds anything else is refused."""
        return torch.load(path, map_location=map_location or "cpu", weights_only=True)

    def remove_checkpoint(self, path: Any) -> None:
        """Deletes a checkpoint."""
        Path(path).unlink(missing_ok=True)


class Checkpoint(callbacks.Checkpoint):
    """Saves the state of a run, so that it can be resumed where it was; the end of the run is always saved.

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
        self._last_saved = 0.0
        self._last_step = -1
        self._waiting = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock."""
        self._last_saved = time.monotonic()
        self._last_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Saves when it is time, between two optimizer steps and never amid the batches that add up to one."""
        step = trainer.global_step
        if step == self._last_step:
            return
        if self.every_n_steps:
            due = step % self.every_n_steps == 0
        else:
            # the first process's clock decides for all, since all take part in saving
            due = time.monotonic() - self._last_saved > 60 * self.every_minutes
            due = trainer.strategy.broadcast(due)
        due = due or step >= trainer.estimated_stepping_batches
        # a resumed run does not measure again what an epoch's end measures: early stopping has to know it first
        self._waiting = due and trainer.is_last_batch and _may_stop_early(trainer)
        if due and not self._waiting:
            self._save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves what was put off, and a run that stops before its time."""
        if self._waiting or (trainer.should_stop and trainer.global_step != self._last_step):
            self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        folder = Path(trainer.default_root_dir) / CHECKPOINTS
        trainer.save_checkpoint(folder / f"step-{trainer.global_step:010d}.ckpt")
        self._last_saved, self._last_step = time.monotonic(), trainer.global_step
        self._waiting = False
        if trainer.is_global_zero:
            for old in sorted(folder.glob("step-*.ckpt"))[: -self.keep]:
                old.unlink()


def _may_stop_early(trainer: Trainer) -> bool:
    every = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue] - set out of its sight
    return any(isinstance(each, EarlyStopping) and each.patience is not None for each in every)
