"""What `benchmarks/methods.py` gives the runs that it measures."""

import json
import os
import statistics
import time
from itertools import pairwise
from typing import Any

from lightning import Callback
from measuring import peak_memory

WARM_UP = 2


class StepCost(Callback):
    """Times some steps, prints their median and the peak of the memory, and ends the process.

    The time is that of the processor: what other programs do meanwhile does not count.

    Args:
        steps: How many are timed.
    """

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._ends: list[float] = []

    def on_train_batch_end(self, *_: Any) -> None:
        """Notes when a step is over."""
        self._ends.append(time.process_time())
        if len(self._ends) == WARM_UP + self._steps:
            ends = self._ends[WARM_UP - 1 :]
            seconds = statistics.median(end - start for start, end in pairwise(ends))
            print(json.dumps({"seconds": seconds, "peak_memory": peak_memory()}), flush=True)
            os._exit(0)
