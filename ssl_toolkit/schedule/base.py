"""`Schedule`: the base class of schedules."""

from __future__ import annotations

from abc import ABC, abstractmethod


class Schedule(ABC):
    """Base class of schedules, factors on the learning rate: a linear warm-up from 0, then a curve.

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
        if warmup_percent is not None and warmup_percent > 100:
            raise ValueError(f"schedule.warmup_percent is {warmup_percent:g}, expected 0 to 100 percent of the run")
        self.warmup_steps = warmup_steps
        self.warmup_epochs = warmup_epochs
        self.warmup_percent = warmup_percent

    @abstractmethod
    def curve(self, progress: float) -> float:
        """The factor at a fraction of the run after the warm-up, 0 (its start) to 1 (its end)."""

    def warmup(self, total_steps: int, steps_per_epoch: float) -> float:
        """The length of the warm-up in optimizer steps; the arguments are those of `factor`."""
        if self.warmup_epochs is not None:
            return self.warmup_epochs * steps_per_epoch
        if self.warmup_percent is not None:
            return self.warmup_percent / 100 * total_steps
        return float(self.warmup_steps or 0)

    def factor(self, step: int, total_steps: int, steps_per_epoch: float) -> float:
        """The factor on the learning rate at an optimizer step.

        Args:
            step: Optimizer steps done so far, from 0.
            total_steps: Optimizer steps of the whole run.
            steps_per_epoch: Optimizer steps in an epoch.
        """
        warmup = self.warmup(total_steps, steps_per_epoch)
        if step < warmup:
            return step / warmup
        return self.curve(min(1.0, (step - warmup) / max(1.0, total_steps - warmup)))


def check_factor(**values: float) -> None:
    """Raises a ValueError for a factor on the learning rate that is not between 0 and 1."""
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise ValueError(f"schedule.{name} is {value}, expected 0 to 1")
