"""Throughput of a run, and its time waiting for data."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from ssl_toolkit.tracking.scalars import log_number


class _Mark(NamedTuple):
    seconds: float
    images: int
    waited: float


def num_images(batch: Any) -> int:
    """The number of samples of a batch: that of its ``indices``, or else the length of the first tensor in it."""
    if isinstance(batch, Tensor):
        return len(batch)
    if isinstance(indices := getattr(batch, "indices", None), Tensor):
        return len(indices)
    if isinstance(batch, Mapping):
        batch = batch.values()
    if isinstance(batch, Iterable):
        return next((count for count in map(num_images, batch) if count), 0)
    return 0


class Throughput(Callback):
    """Throughput: logs ``train/images_per_second`` and ``train/data_wait`` over the last steps.

    The rate counts the images of all processes. ``data_wait`` is the fraction of time, 0 to 1, in which the training
    loop stood still for the next batch: above 0.1 or so, faster data would make the run faster. What happens between
    epochs (validation, evaluation) counts for neither.

    Args:
        window: How many of the last steps are averaged, at least 1.
        clock: Seconds, monotonic; another one for tests.
    """

    def __init__(self, window: int = 50, clock: Callable[[], float] = time.perf_counter) -> None:
        if window < 1:
            raise ValueError(f"Throughput: window is {window}, expected at least 1")
        self.clock = clock
        self._marks: deque[_Mark] = deque(maxlen=window + 1)
        self._last = 0.0
        self._waited_before = 0.0
        self._waited = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts from nothing, in a resumed run too; of an epoch that was begun before, Lightning tells nothing."""
        self._marks.clear()
        self._marks.append(_Mark(0.0, 0, 0.0))
        self._restart(trainer)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock."""
        self._restart(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock after a validation within an epoch."""
        self._restart(trainer)

    def _restart(self, trainer: Trainer) -> None:
        self._last = self.clock()
        self._waited_before = _loader_wait(trainer) or 0.0
        self._waited = 0.0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Measures the wait for the batch: by the loader's own account, or else by the time since the last step."""
        total = _loader_wait(trainer)
        if total is None:
            self._waited = self.clock() - self._last
        else:
            self._waited = total - self._waited_before
            self._waited_before = total

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Counts the step and logs."""
        now = self.clock()
        mark = self._marks[-1]
        step = _Mark(now - self._last, num_images(batch) * trainer.world_size, self._waited)
        self._marks.append(_Mark(mark.seconds + step.seconds, mark.images + step.images, mark.waited + step.waited))
        self._last = now
        first, last = self._marks[0], self._marks[-1]
        seconds = last.seconds - first.seconds
        if seconds > 0:
            wait = min(max((last.waited - first.waited) / seconds, 0.0), 1.0)
            log_number(pl_module, "train/images_per_second", (last.images - first.images) / seconds)
            log_number(pl_module, "train/data_wait", wait)


def _loader_wait(trainer: Trainer) -> float | None:
    """Seconds that the training loop has waited for the loader so far, if the loader keeps an account."""
    return getattr(trainer.train_dataloader, "wait_seconds", None)
