"""Learning rate range test: a hundred steps on the task and the data at hand suggest a rate.

Smith 2017, "Cyclical learning rates for training neural networks", arXiv 1506.01186, section 3.3. The rate grows by the
same factor in each step, from one far too small to one far too large, as in fastai (Howard and Gugger 2020, arXiv
2002.04688); the loss tells where between them the network learns.
"""

from __future__ import annotations

import math
import time
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from numpy.typing import ArrayLike, NDArray

from ssl_toolkit.distributed.collectives import relative_size
from ssl_toolkit.distributed.ranks import from_rank_zero
from ssl_toolkit.errors import counted
from ssl_toolkit.optim import scaled_lr
from ssl_toolkit.random import seed_generators
from ssl_toolkit.schedule import Schedule
from ssl_toolkit.task import Task
from ssl_toolkit.tuning.time_budget import trial_trainer

# how much of the running mean of the loss each step keeps
_DECAY = 0.5
# a fall of the loss counts from this part of its start on, a rise from this part of the fall on
_LEAST_FALL, _LEAST_RISE = 0.02, 0.1
# the test ends where the loss has risen to so many times its best
_RISE = 4.0
# steps at the lowest rate: their loss is where the curve begins, and their time tells how many steps there may be
_STEPS_BEFORE = 4
_MOST_STEPS, _FEWEST_STEPS = 100, 40


class RateCurve(NamedTuple):
    """The loss over the learning rate.

    Attributes:
        rates: float64 array of shape ``[n]``: the rate of each step, rising.
        losses: float64 array of shape ``[n]``: the loss of one and the same batch after the step, without penalties.
        start: The loss before the first of these steps.
        end: Why there are no more: ``"rise"`` (the loss rose to four times its best), ``"not finite"``, or
            ``"highest"`` (all rates were tried).
    """

    rates: NDArray[np.float64]
    losses: NDArray[np.float64]
    start: float
    end: str

    @property
    def smoothed(self) -> NDArray[np.float64]:
        """The running mean of the losses, from both sides, so that it does not lag; of shape ``[n]``.

        What lies above the start counts as the start: else the last, huge losses would be all that is seen.
        """
        capped = np.minimum(self.losses, self.start)
        return (running_mean(capped) + running_mean(capped[::-1])[::-1]) / 2

    @property
    def at_lowest(self) -> float:
        """The rate at which the loss is lowest before it first rises: what comes later depends on what was spoilt."""
        return float(self.rates[self._lowest])

    @property
    def at_steepest(self) -> float:
        """The rate at which the loss falls fastest, over the logarithm of the rate."""
        if self._lowest < 2:
            return self.at_lowest
        slopes = np.gradient(self.smoothed, np.log(self.rates))[: self._lowest]
        return float(self.rates[int(np.argmin(slopes))])

    @property
    def problem(self) -> str | None:
        """Why nothing can be read off this curve, and what to try; None if something can."""
        lowest = self._lowest
        best = self.smoothed[lowest]
        # from one step to the next it wavers, and hardly falls
        noise = float(np.sqrt(np.mean(np.diff(self.losses[: lowest + 3]) ** 2) / 2)) if len(self.losses) > 1 else 0.0
        if not self.start - best > max(2 * noise, 1e-3 * abs(self.start)):
            return (
                f"the loss never clearly falls ({self.start:.4g} at the start, {best:.4g} at best, while "
                f"it wavers by {noise:.2g} from step to step): try a larger batch, more steps (--steps 300), or a "
                f"lower start (--lowest {self.rates[0] / 1000:.2g}); if nothing helps, task or data have a fault"
            )
        if self.end == "highest" and lowest >= len(self.rates) * 0.95 - 1:
            return (
                f"the loss still falls at the highest rate of {self.rates[-1]:.3g}: try --highest "
                f"{100 * self.rates[-1]:.3g}"
            )
        return None

    @property
    def _lowest(self) -> int:
        smoothed = self.smoothed
        best = np.minimum.accumulate(smoothed)
        fall = self.start - best
        rises = (fall > _LEAST_FALL * abs(self.start)) & (smoothed - best > _LEAST_RISE * fall)
        end = int(np.argmax(rises)) if rises.any() else len(smoothed)
        return int(np.argmin(smoothed[:end]))


class RangeTest(NamedTuple):
    """A range test and what it was made with.

    Attributes:
        curve: What was measured.
        batch_size: Images of a step, over all processes and accumulated batches.
        factor: By what the recipe's ``lr_scaling`` multiplies a rate for such a batch.
        seconds: Of the whole test.
        slow: The steps were so slow that fewer were made than usual.
    """

    curve: RateCurve
    batch_size: int
    factor: float
    seconds: float
    slow: bool

    @property
    def candidates(self) -> dict[str, float]:
        """The rates for the recipe (before its scaling) by the rule that gives them, to two digits."""
        found = {"steepest": self.curve.at_steepest, "lowest": self.curve.at_lowest}
        return {name: float(f"{rate / self.factor:.2g}") for name, rate in found.items()}


class Growth(Schedule):
    """A rate that grows by the same factor in each step.

    Args:
        growth: The last rate over the first, above 1.
        num_steps: Over how many steps, at least 2.
    """

    def __init__(self, growth: float, num_steps: int = _MOST_STEPS) -> None:
        super().__init__()
        self.growth = growth
        self.num_steps = num_steps

    def curve(self, progress: float) -> float:
        """From 1 to ``growth``."""
        return self.growth**progress

    def factor(self, step: int, total_steps: int, steps_per_epoch: float) -> float:
        """As in `Schedule`, but over its own steps, after some at the first rate."""
        return self.curve(max(0, step - _STEPS_BEFORE) / (self.num_steps - 1))


def check_range(lowest: float, highest: float, steps: int | None) -> None:
    """Raises a ValueError if `range_test` cannot be made of these."""
    if not 0 < lowest < highest < math.inf:
        raise ValueError(f"--lowest is {lowest:g} and --highest {highest:g}, expected 0 < lowest < highest")
    if steps is not None and steps < 10:
        raise ValueError(f"--steps is {steps}, expected at least 10")


def range_test(
    task: Task,
    data: LightningDataModule,
    arguments: dict[str, Any],
    lowest: float = 1e-6,
    highest: float = 10.0,
    steps: int | None = None,
    seconds: float = 45.0,
) -> RangeTest:
    """Range test: trains a task with a growing rate and records the loss.

    Everything but the rate and its schedule is the run's own: optimizer, decay, factors of layers, regularizers,
    precision, accumulated batches, clipping. The same on every process; torch's generators are left as they were.

    Args:
        task: Trained and thrown away: a run needs a new one.
        data: The images, set up.
        arguments: Of Lightning's Trainer for the run.
        lowest: The first rate, above 0.
        highest: The last rate, above the first.
        steps: How many steps, at least 10; by default 100, or as few as fit into ``seconds``, but 40 at least.
        seconds: For how long, by default.

    Raises:
        ValueError: An argument is out of its range, or the loss is not finite from the start.
    """
    check_range(lowest, highest, steps)
    started = time.perf_counter()
    scaling, reference = task.lr_scaling, task.reference_batch_size
    schedule = Growth(highest / lowest)
    task.schedule, task.optimizer_spec.lr, task.lr_scaling = schedule, lowest, "none"
    record = _Record(lowest, schedule, steps, seconds)
    trainer = trial_trainer(arguments, record)
    device = trainer.strategy.root_device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        trainer.fit(task, datamodule=data)
    accumulated = trainer.accumulate_grad_batches
    loader: Any = trainer.train_dataloader
    batch_size = loader.batch_size * trainer.world_size * accumulated
    factor = scaled_lr(1.0, scaling, batch_size, reference)
    slow = steps is None and schedule.num_steps < _MOST_STEPS
    return RangeTest(record.curve(), batch_size, factor, time.perf_counter() - started, slow)


class _Record(Callback):
    """Records the loss after each step, and ends the test."""

    def __init__(self, lowest: float, schedule: Growth, steps: int | None, seconds: float) -> None:
        self.lowest = lowest
        self.schedule = schedule
        self.steps = steps
        self.seconds = seconds
        self.losses: list[float] = []
        self.end = "highest"
        self._batch: Any = None
        self._times: list[float] = []

    def curve(self) -> RateCurve:
        """What was recorded, without losses that are not finite."""
        losses = np.array(self.losses[_STEPS_BEFORE:])
        rates = self.lowest * np.array([self._factor(step) for step in range(len(losses))])
        known = np.isfinite(losses)
        return RateCurve(rates[known], losses[known], float(np.mean(self.losses[:_STEPS_BEFORE])), self.end)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Records, and stops when there is nothing more to see."""
        self._batch = batch if self._batch is None else self._batch
        if trainer.global_step == len(self.losses):
            return  # more batches are accumulated for this step
        self.losses.append(self._loss(trainer, pl_module))
        self._times.append(time.perf_counter())
        done = len(self.losses) - _STEPS_BEFORE
        if not math.isfinite(self.losses[-1]):
            if done <= 0:
                raise ValueError(
                    f"the loss is {self.losses[-1]} after {counted(len(self.losses), 'steps')} at the lowest rate, "
                    f"{self.lowest:g}: look at the data, or try --trainer.precision 32-true"
                )
            self.end = "not finite"
        elif done == 0:
            self._choose_length()
        elif done > 0:
            recent = running_mean(self.losses[_STEPS_BEFORE:])
            best = recent.min()
            # of a loss that may fall below 0, the start is what its best is measured by
            if recent[-1] > best + (_RISE - 1) * max(abs(best), 0.01 * abs(self.losses[0])):
                self.end = "rise"
        trainer.should_stop = self.end != "highest" or done >= self.schedule.num_steps

    @torch.no_grad()
    def _loss(self, trainer: Trainer, task: Any) -> float:
        """The loss of the first batch with the same random choices, since batches differ more than a step changes."""
        seed_generators(0, task.device)  # the next step seeds them again
        with trainer.precision_plugin.train_step_context():
            loss = task.compute(self._batch).loss * relative_size(len(self._batch.indices), task.device)
        return float(trainer.strategy.reduce(loss, reduce_op="mean"))

    def _choose_length(self) -> None:
        # the first is slower: memory is taken from the system, kernels are chosen
        step = float(np.median(np.diff(self._times)))
        fitting = int(min(_MOST_STEPS, max(_FEWEST_STEPS, self.seconds / step)))
        self.schedule.num_steps = from_rank_zero(self.steps or fitting)

    def _factor(self, step: int) -> float:
        return self.schedule.factor(_STEPS_BEFORE + step, 0, 0.0)


def running_mean(values: ArrayLike, decay: float = _DECAY) -> NDArray[np.float64]:
    """The exponentially weighted mean of each value and those before it, weights that sum to 1 from the first on.

    That is the running mean of Adam with its bias correction (Kingma and Ba 2015, arXiv 1412.6980, section 3).

    Args:
        values: Array of shape ``[n]``.
        decay: The weight of a value over that of the next, 0 to 1.
    """
    means, mean = [], 0.0
    for step, value in enumerate(np.asarray(values, dtype=float), start=1):
        mean = decay * mean + (1 - decay) * value
        means.append(mean / (1 - decay**step))
    return np.array(means)
