"""What `benchmarks/methods.py` gives the runs that it measures."""

import json
import os
import statistics
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from lightning import Callback

WARM_UP = 2


def peak_memory() -> int:
    """The most memory in bytes that this process ever had.

    Not ``ru_maxrss``, which a process that was started by a larger one inherits from it.
    """
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    (kilobytes,) = (line.split()[1] for line in lines if line.startswith("VmHWM:"))
    return 1024 * int(kilobytes)


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
