"""Time budget: the number of steps that fit into a given time, measured on the task and the machine at hand.

A schedule that ends with the budget is worth more than the same steps of a longer one that is cut off (Li, Yumer,
Ramanan 2020, "Budgeted training", arXiv 1905.04753, section 3). So the number of steps is settled before the run, and
the run itself stays a function of its configuration.
"""

from __future__ import annotations

import math
import re
import sys
import time
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer

from ssl_toolkit.callbacks import OnlineEvaluation, ProgressiveSize
from ssl_toolkit.data import ImageData
from ssl_toolkit.task import Task

_UNITS = {"s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}

_VALIDATION_BATCHES = 4
_MOST_STEPS = 10**6  # a schedule needs an end; the trial stops long before

# arguments of the Trainer that the trial sets itself, or that only a whole run needs
_OF_THE_RUN = {
    "max_epochs", "max_steps", "min_epochs", "min_steps", "max_time", "callbacks", "plugins", "num_sanity_val_steps",
    "limit_val_batches", "check_val_every_n_epoch", "val_check_interval", "fast_dev_run", "profiler",
}  # fmt: skip


def to_seconds(text: str) -> float:
    """Reads a time such as ``90s``, ``60min``, ``1.5h`` or ``2d``.

    Raises:
        ValueError: It is none, or not above 0.
    """
    found = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*([a-z]+)\s*", text.lower())
    if not found or found[2] not in _UNITS or float(found[1]) <= 0:
        raise ValueError(f"--budget {text!r} is not a time above 0; give it as 90s, 60min, 1.5h or 2d")
    return float(found[1]) * _UNITS[found[2]]


class Costs(NamedTuple):
    """What takes time in a run, in seconds, and how often.

    Attributes:
        step: One step of the optimizer.
        steps_per_epoch: Steps of the optimizer in an epoch.
        validation: The validation loss, on average over the epochs.
        evaluation: One evaluation of the features.
        every_n_epochs: Epochs from one evaluation to the next; 0 for none.
    """

    step: float
    steps_per_epoch: float
    validation: float
    evaluation: float
    every_n_epochs: int

    def steps_within(self, seconds: float) -> int:
        """The number of steps that fit, at least 1.

        Raises:
            ValueError: Not even one step does.
        """
        last = self.evaluation if self.every_n_epochs else 0.0
        epoch = self.steps_per_epoch * self.step + self.validation
        epoch += self.evaluation / self.every_n_epochs if self.every_n_epochs else 0.0
        steps = math.floor((seconds - last) / epoch * self.steps_per_epoch)
        if steps < 1:
            raise ValueError(
                f"--budget: {max(seconds, 0):.0f} s are left to train, too little for one step of {self.step:,.3g} s"
                f" and an evaluation of {last:,.3g} s; give more time, or set --trainer.max_steps"
            )
        return steps


def measure(
    task: Task,
    data: LightningDataModule,
    arguments: dict[str, Any],
    evaluation: OnlineEvaluation | None = None,
    progressive: ProgressiveSize | None = None,
    seconds: float = 10.0,
) -> Costs:
    """Measures a run's costs by a trial: some steps of training and of validation, and some evaluated images.

    Args:
        task: Trained and thrown away: the run itself needs a new one.
        data: The images, set up.
        arguments: Of Lightning's Trainer for the run.
        evaluation: Of the run, or None.
        progressive: Likewise. The smallest and the whole views are measured, and those between them by their pixels.
        seconds: For how long training steps are measured, at least; ten batches at the fewest, after five to warm up.

    Returns:
        The costs, as this process saw them.
    """
    stopwatch = Stopwatch(seconds)
    trainer = trial_trainer(arguments, stopwatch)
    trainer.fit(task, datamodule=data)
    accumulated, batches = trainer.accumulate_grad_batches, int(trainer.num_training_batches)
    validation = 0.0
    if arguments.get("limit_val_batches") != 0 and len(loader := data.val_dataloader()):
        trainer.validate(task, datamodule=data, verbose=False)
        every = arguments.get("check_val_every_n_epoch") or 1
        validation = stopwatch.validation * len(loader) / every
    training = stopwatch.training
    views = getattr(task, "random_views", ())
    if progressive is not None and progressive.start < 1 and views:
        small = Stopwatch(seconds)
        for view, _ in views:
            view.side = progressive.side(view.size, 0)
        trial_trainer(arguments, small).fit(task, datamodule=data)
        whole = sum(count * view.size**2 for view, count in views)
        least = sum(count * view.side**2 for view, count in views)
        mean = sum(count * progressive.mean_area(view.size) for view, count in views)
        training = small.training + (training - small.training) * (mean - least) / max(1, whole - least)
    costs = Costs(training * accumulated, batches / accumulated, validation, 0.0, 0)
    if evaluation is not None and isinstance(data, ImageData) and (every := evaluation.interval(task, data)):
        seconds = evaluation.estimate_seconds(trainer, task, data)
        costs = costs._replace(evaluation=seconds, every_n_epochs=every)
    return costs


def trial_trainer(arguments: dict[str, Any], stopwatch: Callback) -> Trainer:
    """A Trainer with the arguments of a run's, that trains until a callback stops it and leaves nothing behind."""
    passed = {name: value for name, value in arguments.items() if name not in _OF_THE_RUN}
    return Trainer(
        **passed, max_epochs=-1, max_steps=_MOST_STEPS, limit_val_batches=_VALIDATION_BATCHES,
        check_val_every_n_epoch=sys.maxsize, num_sanity_val_steps=0, callbacks=[stopwatch], logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        use_distributed_sampler=False,
    )  # fmt: skip


class Stopwatch(Callback):
    """Measures training batches after a warm-up and then stops; measures validation batches.

    Args:
        seconds: For how long training batches are measured, at least.
        warm_up: Batches before the first that is measured: they are slower, as memory is taken from the system and
            kernels are chosen.
        fewest: Batches that are measured, at least.

    Attributes:
        training: Seconds for a training batch.
        validation: Seconds for a validation batch.
    """

    def __init__(self, seconds: float, warm_up: int = 5, fewest: int = 10) -> None:
        self.seconds = seconds
        self.warm_up = warm_up
        self.fewest = fewest
        self.training = self.validation = 0.0
        self._batches = 0
        self._start = 0.0

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Counts, and stops when enough is known."""
        self._batches += 1
        if self._batches == self.warm_up:
            self._start = _now()
        measured = self._batches - self.warm_up
        enough = measured >= self.fewest and time.perf_counter() - self._start >= self.seconds
        # the processes stop together, or they would wait for each other for ever
        if trainer.strategy.broadcast(enough):
            self.training = (_now() - self._start) / measured
            trainer.should_stop = True

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts again."""
        self._batches = 0
        self._start = _now()

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Measures the batches so far."""
        self._batches += 1
        self.validation = (_now() - self._start) / self._batches


def _now() -> float:
    """Seconds, when the device has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
