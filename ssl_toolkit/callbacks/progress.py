"""Progress line of a run."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar as LightningProgressBar
from lightning.pytorch.callbacks import Timer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from ssl_toolkit.errors import counted
from ssl_toolkit.tracking.rates import rate_text

REFRESH_SECONDS = 0.25


class ProgressBar(LightningProgressBar):
    """Progress line: epoch, step, loss, kNN, images/s, time waiting for data, bad files, and the time left of the run.

    A moving bar in a terminal; where the output goes to a file, a line of text every now and then instead.

    Args:
        every_seconds: Seconds between two lines of text where there is no terminal, above 0.
        console: Where to write; standard error by default.
        clock: Seconds, monotonic; another one for tests.
    """

    def __init__(
        self,
        every_seconds: float = 30.0,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__()
        if every_seconds <= 0:
            raise ValueError(f"ProgressBar: every_seconds is {every_seconds}, expected a number above 0")
        self.every_seconds = every_seconds
        self.console = console or Console(stderr=True)
        self.clock = clock
        self._enabled = True
        self._progress: Progress | None = None
        self._bar = TaskID(0)
        self._epoch = 0
        self._shown = -math.inf
        self._start_time, self._start_step = 0.0, 0

    def enable(self) -> None:
        """Shows it."""
        self._enabled = True

    def disable(self) -> None:
        """Hides it; Lightning does so in all processes but the first."""
        self._enabled = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock."""
        self._start_time, self._start_step = self.clock(), trainer.global_step
        self._start()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Shows how the run stands."""
        self._epoch = trainer.current_epoch + 1  # at the end of a run Lightning is already in the next one
        self._show_training(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Shows where the run ended."""
        self._show_training(trainer, force=True)
        self._stop()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Shows a bar if this is a validation on its own, not one of a training run."""
        self._start()

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Shows how far the validation is."""
        self._show("validation", batch_idx + 1, _total(trainer.num_val_batches, dataloader_idx))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Goes back to the training, which may have a new score to show."""
        if trainer.state.fn == "fit":
            self._show_training(trainer)
        else:
            self._stop()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Shows a bar."""
        self._start()

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Shows how far the test is."""
        self._show("test", batch_idx + 1, _total(trainer.num_test_batches, dataloader_idx))

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes the bar away."""
        self._stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Takes the bar away, so that the error stands alone."""
        self._stop()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Takes the bar away."""
        self._stop()

    def _start(self) -> None:
        if self._progress is not None or not self._enabled or not self.console.is_terminal:
            return
        columns = (TextColumn("{task.description}"), BarColumn(bar_width=20), TextColumn("{task.fields[status]}"))
        self._progress = Progress(*columns, console=self.console, refresh_per_second=4)
        self._bar = self._progress.add_task("", total=None, status="")
        self._progress.start()

    def _stop(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def _show_training(self, trainer: Trainer, force: bool = False) -> None:
        if not self._due(force):
            return
        step, total = trainer.global_step, float(trainer.estimated_stepping_batches)
        callbacks: list[Callback] = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue] - set out of its sight
        seconds = seconds_left(self.clock() - self._start_time, step - self._start_step, total - step, callbacks)
        metrics = {**trainer.callback_metrics, **getattr(trainer.lightning_module, "numbers", {})}
        status = training_status(metrics, _num_bad_files(trainer), seconds)
        bounded = trainer.max_epochs is not None and trainer.max_epochs > 0
        epoch = self._epoch or trainer.current_epoch
        epochs = f"{epoch}/{trainer.max_epochs}" if bounded else f"{epoch}"
        self._print(f"epoch {epochs}", step, total, status)

    def _show(self, what: str, done: int, total: float) -> None:
        if self._due(force=False):
            self._print(what, done, total, [])

    def _due(self, force: bool) -> bool:
        now = self.clock()
        every = self.every_seconds if self._progress is None else REFRESH_SECONDS
        if not self._enabled or (not force and now - self._shown < every):
            return False
        self._shown = now
        return True

    def _print(self, what: str, done: int, total: float, status: list[str]) -> None:
        steps = f"{done:,}/{total:,.0f}" if math.isfinite(total) else f"{done:,}"
        line = " · ".join([steps, *status])
        if self._progress is None:
            self.console.print(f"{what} · step {line}", markup=False, highlight=False, soft_wrap=True)
        else:
            known = total if math.isfinite(total) else None
            self._progress.update(self._bar, description=what, completed=done, total=known, status=line)


def training_status(metrics: Mapping[str, Any], num_bad_files: int, seconds: float | None) -> list[str]:
    """Numbers of the progress line, as far as they are known.

    Args:
        metrics: The metrics logged last, by name.
        num_bad_files: Unreadable files found so far.
        seconds: Time left; None where nobody knows.
    """
    formats: dict[str, Callable[[float], str]] = {
        "train/loss": lambda value: f"loss {value:.3f}",
        "val/knn_top1": lambda value: f"kNN {100 * value:.1f} %",
        "val/top1": lambda value: f"top-1 {100 * value:.1f} %",
        "val/map": lambda value: f"mAP {100 * value:.1f} %",
        "val/r2": lambda value: f"R2 {value:.3f}",
        "train/images_per_second": lambda value: f"{rate_text(value)} images/s",
        "train/data_wait": lambda value: f"data wait {100 * value:.0f} %",
    }
    status = [text(float(metrics[name])) for name, text in formats.items() if name in metrics]
    if num_bad_files:
        status.append(counted(num_bad_files, "bad files"))
    if seconds is not None:
        status.append(f"{timedelta(seconds=round(seconds))} left")
    return status


def seconds_left(
    elapsed: float, steps_done: int, steps_left: float, callbacks: Sequence[Callback] = ()
) -> float | None:
    """Remaining time of a run, at its pace so far (evaluations included), or until its time is up (``max_time``).

    Args:
        elapsed: Seconds since this process began to train.
        steps_done: Steps made since then.
        steps_left: Steps still to be made; infinite where only time ends the run.
        callbacks: Those of the trainer; a timer among them knows when the time is up.
    """
    limits = [timer.time_remaining() for timer in callbacks if isinstance(timer, Timer)]
    if steps_done > 0 and math.isfinite(steps_left):
        limits.append(elapsed / steps_done * steps_left)
    known = [max(limit, 0.0) for limit in limits if limit is not None]
    return min(known, default=None)


def _num_bad_files(trainer: Trainer) -> int:
    return len(getattr(getattr(trainer, "datamodule", None), "bad_files", ()))


def _total(batches: int | float | list[int | float], dataloader_idx: int) -> float:
    return batches[dataloader_idx] if isinstance(batches, list) else batches
