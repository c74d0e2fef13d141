"""Schedules of the learning rate and of other numbers: pure functions of the step, shared by both sides."""

from ssl_toolkit.schedule.base import Schedule
from ssl_toolkit.schedule.curves import (
    Constant,
    Cosine,
    Exponential,
    InverseSqrt,
    Linear,
    MultiStep,
    OneCycle,
    Polynomial,
    Step,
)
from ssl_toolkit.schedule.scalar import Progress, Scheduled, check_bounds, value_at

__all__ = [
    "Constant", "Cosine", "Exponential", "InverseSqrt", "Linear", "MultiStep", "OneCycle", "Polynomial", "Progress",
    "Schedule", "Scheduled", "Step", "check_bounds", "value_at",
]  # fmt: skip
