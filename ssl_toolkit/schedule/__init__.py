"""Learning rate schedules: pure functions of the step, shared by pretext and downstream tasks."""

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

__all__ = [
    "Constant", "Cosine", "Exponential", "InverseSqrt", "Linear", "MultiStep", "OneCycle", "Polynomial", "Schedule",
    "Step",
]  # fmt: skip
