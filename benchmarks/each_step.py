"""What `benchmarks/throughput.py` gives the run that it measures."""

from typing import Any

from lightning import Callback
from step_clock import StepClock


class EachStep(Callback):
    """Prints the time after each step."""

    def __init__(self) -> None:
        self._clock = StepClock()

    def on_train_batch_end(self, *_: Any) -> None:
        """Prints the time."""
        self._clock.tick()
