"""Schedule curves: cosine, linear, step, and others."""

from __future__ import annotations

import math
from typing import Any

from ssl_toolkit.schedule.base import Schedule, check_factor


class Constant(Schedule):
    """Constant schedule: the same rate throughout, after the warm-up."""

    def curve(self, progress: float) -> float:
        """Returns 1."""
        return 1.0


class Cosine(Schedule):
    """Cosine schedule: half a period of a cosine (Loshchilov and Hutter 2017, arXiv 1608.03983, equation 5).

    With restarts the rate jumps back to its start, or to a fraction of it, and falls again, each time over as long or
    longer.

    Args:
        final_factor: The factor at the end of each cycle, 0 to 1.
        num_cycles: How often the rate falls; 1 for no restart.
        cycle_growth: Length of a cycle over that of the one before it (the paper's T_mult), above 0.
        restart_factor: The start of a cycle over the start of the one before it, 0 to 1.
        **warmup: See `Schedule`.
    """

    def __init__(
        self,
        final_factor: float = 0.0,
        num_cycles: int = 1,
        cycle_growth: float = 1.0,
        restart_factor: float = 1.0,
        **warmup: Any,
    ) -> None:
        super().__init__(**warmup)
        check_factor(final_factor=final_factor, restart_factor=restart_factor)
        if num_cycles < 1 or cycle_growth <= 0:
            raise ValueError(
                f"schedule.num_cycles is {num_cycles} and cycle_growth {cycle_growth}, expected at least 1 and above 0"
            )
        self.final_factor = final_factor
        self.restart_factor = restart_factor
        lengths = [cycle_growth**cycle for cycle in range(num_cycles)]
        self._ends = [sum(lengths[: cycle + 1]) / sum(lengths) for cycle in range(num_cycles)]

    def curve(self, progress: float) -> float:
        """Falls from 1 to ``final_factor``, in each cycle."""
        cycle = next((number for number, end in enumerate(self._ends) if progress < end), len(self._ends) - 1)
        start = self._ends[cycle - 1] if cycle else 0.0
        fraction = min(1.0, (progress - start) / (self._ends[cycle] - start))
        top = max(self.restart_factor**cycle, self.final_factor)
        return self.final_factor + (top - self.final_factor) * 0.5 * (1 + math.cos(math.pi * fraction))


class Linear(Schedule):
    """Linear schedule: a straight line after the warm-up.

    Args:
        final_factor: The factor at the end, 0 to 1.
        **warmup: See `Schedule`.
    """

    def __init__(self, final_factor: float = 0.0, **warmup: Any) -> None:
        super().__init__(**warmup)
        check_factor(final_factor=final_factor)
        self.final_factor = final_factor

    def curve(self, progress: float) -> float:
        """Falls from 1 to ``final_factor``."""
        return 1 - (1 - self.final_factor) * progress


class Polynomial(Schedule):
    """Polynomial schedule: a power of what is left of the run.

    Args:
        power: The exponent, above 0; 1 is a straight line.
        final_factor: The factor at the end, 0 to 1.
        **warmup: See `Schedule`.
    """

    def __init__(self, power: float = 2.0, final_factor: float = 0.0, **warmup: Any) -> None:
        super().__init__(**warmup)
        check_factor(final_factor=final_factor)
        if power <= 0:
            raise ValueError(f"schedule.power is {power}, expected a number above 0")
        self.power = power
        self.final_factor = final_factor

    def curve(self, progress: float) -> float:
        """Falls from 1 to ``final_factor``."""
        return self.final_factor + (1 - self.final_factor) * (1 - progress) ** self.power


class Exponential(Schedule):
    """Exponential schedule: falls by the same fraction in each step.

    Args:
        final_factor: The factor at the end, above 0 and at most 1.
        **warmup: See `Schedule`.
    """

    def __init__(self, final_factor: float = 0.01, **warmup: Any) -> None:
        super().__init__(**warmup)
        check_factor(final_factor=final_factor)
        if final_factor == 0:
            raise ValueError("schedule.final_factor is 0, which an exponential never reaches; give one above 0")
        self.final_factor = final_factor

    def curve(self, progress: float) -> float:
        """Falls from 1 to ``final_factor``."""
        return self.final_factor**progress


class Step(Schedule):
    """Step schedule: multiplies the rate by a factor at regular intervals.

    Args:
        every: Fraction of the run after the warm-up from one step to the next, above 0 and at most 1.
        gamma: The factor of each step, 0 to 1.
        **warmup: See `Schedule`.
    """

    def __init__(self, every: float = 0.3, gamma: float = 0.1, **warmup: Any) -> None:
        super().__init__(**warmup)
        check_factor(gamma=gamma)
        if not 0 < every <= 1:
            raise ValueError(f"schedule.every is {every}, expected a share of the run above 0 and at most 1")
        self.every = every
        self.gamma = gamma

    def curve(self, progress: float) -> float:
        """``gamma`` to the number of steps passed."""
        # the small number is for fractions such as 0.3 / 0.1, which are a little less than they should be
        return self.gamma ** math.floor(progress / self.every + 1e-9)


class MultiStep(Schedule):
    """Multi-step schedule: multiplies the rate by a factor at chosen fractions of the run.

    Args:
        milestones: Fractions of the run after the warm-up, rising, each between 0 and 1.
        gamma: The factor at each milestone, 0 to 1.
        **warmup: See `Schedule`.
    """

    def __init__(self, milestones: tuple[float, ...] = (0.6, 0.8), gamma: float = 0.1, **warmup: Any) -> None:
        super().__init__(**warmup)
        check_factor(gamma=gamma)
        if list(milestones) != sorted(milestones) or not all(0 < fraction < 1 for fraction in milestones):
            raise ValueError(f"schedule.milestones is {milestones}, expected rising shares between 0 and 1")
        self.milestones = milestones
        self.gamma = gamma

    def curve(self, progress: float) -> float:
        """``gamma`` to the number of milestones passed."""
        return self.gamma ** sum(progress >= fraction for fraction in self.milestones)


class InverseSqrt(Schedule):
    """Inverse square root schedule, which needs no end of the run (Zhai et al. 2022, arXiv 2106.04560, section 3.5).

    Args:
        timescale: The fraction of the run after the warm-up at which the rate has fallen to 0.71, above 0. With a
            warm-up of a fraction w of the run, w / (1 - w) is the schedule of Vaswani et al. 2017 (arXiv 1706.03762,
            equation 3).
        **warmup: See `Schedule`.
    """

    def __init__(self, timescale: float = 0.1, **warmup: Any) -> None:
        super().__init__(**warmup)
        if timescale <= 0:
            raise ValueError(f"schedule.timescale is {timescale}, expected a share of the run above 0")
        self.timescale = timescale

    def curve(self, progress: float) -> float:
        """Falls from 1, ever more slowly."""
        return (1 + progress / self.timescale) ** -0.5


class OneCycle(Schedule):
    """One-cycle schedule: up to the rate and down to almost nothing (Smith and Topin 2018, arXiv 1708.07120, section
    3), both as cosines.

    It is its own warm-up. The momentum stays as it is.

    Args:
        peak: The fraction of the run at which the rate is reached, above 0 and below 1.
        initial_factor: The factor at the start, 0 to 1.
        final_factor: The factor at the end, 0 to 1.
    """

    def __init__(self, peak: float = 0.3, initial_factor: float = 0.04, final_factor: float = 4e-6) -> None:
        super().__init__()
        check_factor(initial_factor=initial_factor, final_factor=final_factor)
        if not 0 < peak < 1:
            raise ValueError(f"schedule.peak is {peak}, expected a share of the run above 0 and below 1")
        self.peak = peak
        self.initial_factor = initial_factor
        self.final_factor = final_factor

    def curve(self, progress: float) -> float:
        """Rises from ``initial_factor`` to 1, and falls to ``final_factor``."""
        if progress < self.peak:
            low, fraction = self.initial_factor, 1 - progress / self.peak
        else:
            low, fraction = self.final_factor, (progress - self.peak) / (1 - self.peak)
        return low + (1 - low) * 0.5 * (1 + math.cos(math.pi * fraction))
