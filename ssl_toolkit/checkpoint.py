"""Checkpoints, for resuming a run and nothing else."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer, callbacks
from lightning.pytorch.plugins.io import CheckpointIO
from torch import Tensor

from ssl_toolkit.archives import check_not_compressed
from ssl_toolkit.callbacks.early_stopping import EarlyStopping
from ssl_toolkit.callbacks.weight_average import trained_weights
from ssl_toolkit.distributed import all_reduce_max
from ssl_toolkit.errors import CANNOT_WRITE
from ssl_toolkit.files import flush_folder, remove_with_checksum, write_checksum
from ssl_toolkit.preemption import Preemption
from ssl_toolkit.processes import is_first_process
from ssl_toolkit.run import CHECKPOINTS

# failures to save in a row after which a run stops: what is not saved is lost
_MOST_FAILURES = 3


class AtomicCheckpointIO(CheckpointIO):
    """Writes a checkpoint and its checksum beside their targets and renames them there.

    A process killed at any moment leaves the old file or the new one, never a part: Lightning's own way goes through
    the system's temporary folder, and on another file system its last step is a copy over the old file. Where there is
    no room, what was there before stays, and the failure is counted.

    Attributes:
        failures: How many times in a row nothing could be written.
    """

    def __init__(self) -> None:
        self.failures = 0

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Saves, flushes to the disk, and renames; says so if it cannot."""
        target = Path(path)
        try:
            self._save(checkpoint, target)
            self.note(target, None)
        # torch raises a RuntimeError if its archive cannot be written to its end
        except (OSError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and not isinstance(error.__context__, OSError):
                raise
            self.note(target, str(error.__context__ if isinstance(error, RuntimeError) else error))

    def note(self, target: Path, problem: str | None) -> None:
        """Counts a failure, and says so; a success ends the row.

        Args:
            target: What was to be saved.
            problem: Why it could not; None if it was.
        """
        if problem is None:
            self.failures = 0
            return
        self.failures += 1
        if is_first_process():
            print(f"\ncould not save {target} ({problem}); what was saved before is kept", file=sys.stderr)

    def _save(self, checkpoint: dict[str, Any], target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
        try:
            with partial.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            # the checksum first: there is no moment at which a checkpoint has none
            write_checksum(partial, target)
            if target.is_dir():  # of a run whose weights were in parts
                remove_with_checksum(target)
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)
        flush_folder(target.parent)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """See `read_checkpoint`."""
        return read_checkpoint(Path(path))

    def remove_checkpoint(self, path: Any) -> None:
        """Deletes a checkpoint."""
        remove_with_checksum(path)


def read_checkpoint(path: Path, parts: Mapping[str, Tensor] | None = None) -> dict[str, Any]:
    """Loads tensors and plain data, whole or in parts, whichever way they were saved.

    Args:
        path: A file, or the folder of a run whose weights were in parts.
        parts: For a folder: the parameters that are in parts (see `ssl_toolkit.sharded_checkpoint.load`).

    Raises:
        ValueError: If it holds anything else, or is damaged; nothing in it is run.
    """
    try:
        if path.is_dir():
            from ssl_toolkit import sharded_checkpoint

            loaded = sharded_checkpoint.load(path, parts)
        else:
            check_not_compressed(path)
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    # of what is no checkpoint, torch raises whatever comes first, and of a folder something outside of Exception
    except BaseException as error:
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            raise
        raise ValueError(
            f"{path} is no checkpoint of a run, which holds tensors and plain data only ({_first_line(error)}); "
            "nothing in it was run"
        ) from None
    missing = {"state_dict", "global_step", "loops", "pytorch-lightning_version"}
    missing -= set(loaded) if isinstance(loaded, dict) else set()
    if missing:
        raise ValueError(f"{path} is no checkpoint of a run: it lacks {', '.join(sorted(missing))}")
    return loaded


class Checkpoint(callbacks.Checkpoint):
    """Saves the state of a run, so that it can be resumed where it was; the end of the run is always saved.

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

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock, and listens for signals."""
        self._last_saved = time.monotonic()
        self._last_step = self._step_on_disk = trainer.global_step
        self.preemption.listen()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Mends what Lightning counts.

        In a run that was resumed at the end of an epoch it does not count the beginning of the next one. A checkpoint
        amid that one would then say that it is over, and the place in it would be lost at the second resume.
        """
        progress: Any = trainer.fit_loop.epoch_progress
        if progress.current.ready == progress.current.processed:
            progress.increment_ready()
            progress.increment_started()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Saves when it is time, between two optimizer steps and never amid the batches that add up to one."""
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
        """Leaves if a signal came; the resumed run validates anew."""
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
        """Whether it is time to save, by the first process's clock, and the signal that any process got; 0 for none."""
        due = trainer.is_global_zero and time.monotonic() - self._last_saved > 60 * self.every_minutes
        if trainer.world_size == 1:
            return due, self.preemption.number
        found = torch.tensor([int(due), self.preemption.number], device=trainer.strategy.root_device)
        due, number = all_reduce_max(found).tolist()
        return bool(due), number

    def _save(self, trainer: Trainer) -> None:
        folder = Path(trainer.default_root_dir) / CHECKPOINTS
        trainer.save_checkpoint(folder / f"step-{trainer.global_step:010d}.ckpt")
        self._last_saved, self._step_on_disk = time.monotonic(), trainer.global_step
        self._waiting = False
        # only the first process writes, but all have to stop
        failures = trainer.strategy.broadcast(getattr(trainer.strategy.checkpoint_io, "failures", 0))
        if failures >= _MOST_FAILURES:
            print(f"nothing could be saved {failures} times in a row: the run stops", file=sys.stderr)
            raise SystemExit(CANNOT_WRITE)
        if trainer.is_global_zero:
            for old in sorted(folder.glob("step-*.ckpt"))[: -self.keep]:
                remove_with_checksum(old)


def _stop_within_step(trainer: Trainer) -> None:
    """Has Lightning repeat the validation at hand: it leaves one out that was stopped between two of its batches."""
    progress: Any = trainer.fit_loop.epoch_loop.val_loop.batch_progress
    progress.total.processed = progress.total.completed
    progress.current.reset()


def _may_stop_early(trainer: Trainer) -> bool:
    every = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue] - set out of its sight
    return any(isinstance(each, EarlyStopping) and each.patience is not None for each in every)


def _first_line(error: BaseException) -> str:
    # torch's error of a folder holds those of the processes
    for failure, _ in getattr(error, "failures", {}).values():
        return _first_line(failure)
    return (str(error).strip() or type(error).__name__).splitlines()[0]
