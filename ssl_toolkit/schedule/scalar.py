"""Scheduled scalars: any number over a run, with the curves and the units of the learning rate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from ssl_toolkit.schedule.base import Schedule
from ssl_toolkit.schedule.curves import Cosine


class Progress(NamedTuple):
    """Progress of a run.

    Attributes:
        step: Optimizer steps that are finished.
        total_steps: Optimizer steps of the whole run.
        steps_per_epoch: Optimizer steps in an epoch.
    """

    step: int = 0
    total_steps: int = 1
    steps_per_epoch: float = 1.0

    @property
    def fraction(self) -> float:
        """Finished steps / all steps: 0 at the start, exactly 1 after the last step."""
        return min(1.0, self.step / self.total_steps)


@dataclass(frozen=True)
class Scheduled:
    """Scheduled scalar: ``end + (value - end) * factor``, with the factor of the schedule.

    With half a cosine it goes from ``value`` to ``end``: the momentum of BYOL's teacher (Grill et al. 2020, arXiv
    2006.07733, section 3.1) is ``value: 0.996, end: 1.0``. A warm-up goes from ``end`` to ``value``: the temperature of
    DINO's teacher (Caron et al. 2021, arXiv 2104.14294, appendix D) is ``value: 0.07, end: 0.04`` with the schedule
    `Constant` and ``warmup_epochs: 30``.

    Args:
        value: Where the schedule's factor is 1: at the start of the run, or after its warm-up.
        end: Where the factor is 0.
        schedule: A learning rate schedule; half a cosine without a warm-up by default.
    """

    value: float
    end: float = 0.0
    schedule: Schedule | None = None

    def at(self, progress: Progress) -> float:
        """The number at a point of the run."""
        factor = (self.schedule or Cosine()).factor(*progress)
        return self.end + (self.value - self.end) * factor

    @property
    def bounds(self) -> tuple[float, float]:
        """The least and the greatest number that it takes, for a schedule whose factor stays within 0 and 1."""
        return min(self.value, self.end), max(self.value, self.end)


def value_at(number: float | Scheduled, progress: Progress) -> float:
    """The number at a point of the run; one without a schedule is always the same."""
    return number.at(progress) if isinstance(number, Scheduled) else number


def check_bounds(name: str, number: float | Scheduled, low: float, high: float, low_included: bool = True) -> None:
    """Raises a ValueError unless a number stays within its bounds over the whole run.

    Args:
        name: What it is called in messages.
        number: Scheduled or not.
        low: The least number that is allowed.
        high: The greatest.
        low_included: Whether ``low`` itself is allowed.
    """
    least, greatest = number.bounds if isinstance(number, Scheduled) else (number, number)
    if least < low or greatest > high or (least == low and not low_included):
        given = f"from {number.value} to {number.end}" if isinstance(number, Scheduled) else str(number)
        lowest = f"at least {low:g}" if low_included else f"above {low:g}"
        highest = "" if high == float("inf") else f" and at most {high:g}"
        raise ValueError(f"{name} is {given}, expected {lowest}{highest}")
