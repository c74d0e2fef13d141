"""Learning rate schedules: pure functions of the step, shared by pretext and downstream tasks."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod


class Schedule(ABC):
    """A factor on the learning rate: a linear warm-up from 0, then a curve over the rest of the run.

    Args:
        warmup_steps: Length of the warm-up in optimizer steps.
        warmup_epochs: The same in epochs (a fraction is allowed).
        warmup_percent: The same in percent of the run, 0 to 100. At most one of the three may be given.
    """

    def __init__(
        self,
        warmup_steps: int | None = None,
        warmup_epochs: float | None = None,
        warmup_percent: float | None = None,
    ) -> None:
        given = [length for length in (warmup_steps, warmup_epochs, warmup_percent) if length is not None]
        if len(given) > 1:
            raise ValueError("schedule: give one of warmup_steps, warmup_epochs and warmup_percent, not several")
        if given and given[0] < 0:
            raise ValueError(f"schedule: the warm-up is {given[0]}, expected 0 or more")
        self.warmup_steps = warmup_steps
        self.warmup_epochs = warmup_epochs
        self.warmup_percent = warmup_percent

    @abstractmethod
    def curve(self, progress: float) -> float:
        """The factor at a share of the run after the warm-up, 0 (its start) to 1 (its end)."""

    def factor(self, step: int, total_steps: int, steps_per_epoch: float) -> float:
        """The factor on the learning rate at an optimizer step.

        Args:
            step: Optimizer steps done so far, from 0.
            total_steps: Optimizer steps of the whole run.
            steps_per_epoch: Optimizer steps in an epoch.
        """
        warmup = float(self.warmup_steps or 0)
        if self.warmup_epochs is not None:
            warmup = self.warmup_epochs * steps_per_epoch
        elif self.warmup_percent is not None:
            warmup = self.warmup_percent / 100 * total_steps
        if step < warmup:
            return step / warmup
        return self.curve(min(1.0, (step - warmup) / max(1.0, total_steps - warmup)))


class Constant(Schedule):
    """The same rate throughout, after the warm-up."""

    def curve(self, progress: float) -> float:
        """Returns 1."""
        return 1.0


class Cosine(Schedule):
    """Half a period of a cosine (Loshchilov and Hutter 2017, arXiv 1608.03983, equation 5, without restarts).

    Args:
        final_factor: The factor at the end, 0 to 1.
        warmup_steps: Length of the warm-up in optimizer steps.
        warmup_epochs: The same in epochs.
        warmup_percent: The same in percent of the run. At most one of the three may be given.
    """

    def __init__(
        self,
        final_factor: float = 0.0,
        warmup_steps: int | None = None,
        warmup_epochs: float | None = None,
        warmup_percent: float | None = None,
    ) -> None:
        super().__init__(warmup_steps, warmup_epochs, warmup_percent)
        self.final_factor = final_factor

    def curve(self, progress: float) -> float:
        """Falls from 1 to ``final_factor``."""
        return self.final_factor + (1 - self.final_factor) * 0.5 * (1 + math.cos(math.pi * progress))


class Linear(Schedule):
    """A straight line from 1 to 0 after the warm-up."""

    def curve(self, progress: float) -> float:
        """Falls from 1 to 0."""
        return 1 - progress


class MultiStep(Schedule):
    """Multiplies the rate by a factor at chosen shares of the run.

    Args:
        milestones: Shares of the run after the warm-up, rising, each between 0 and 1.
        gamma: The factor at each milestone.
        warmup_steps: Length of the warm-up in optimizer steps.
        warmup_epochs: The same in epochs.
        warmup_percent: The same in percent of the run. At most one of the three may be given.
    """

    def __init__(
        self,
        milestones: tuple[float, ...] = (0.6, 0.8),
        gamma: float = 0.1,
        warmup_steps: int | None = None,
        warmup_epochs: float | None = None,
        warmup_percent: float | None = None,
    ) -> None:
        super().__init__(warmup_steps, warmup_epochs, warmup_percent)
        if list(milestones) != sorted(milestones) or not all(0 < share < 1 for share in milestones):
            raise ValueError(f"schedule.milestones is {milestones}, expected rising shares between 0 and 1")
        self.milestones = milestones
        self.gamma = gamma

    def curve(self, progress: float) -> float:
        """``gamma`` to the number of milestones passed."""
        return self.gamma ** sum(progress >= share for share in self.milestones)
