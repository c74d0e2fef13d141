"""When each training step ends; for everything that `benchmarks/throughput.py` measures, the peers included."""

from __future__ import annotations

import time
from typing import Any

import torch


class StepClock:
    """Prints the time at the end of each step.

    On a GPU it waits for the step before, not for the one that was just given out, so that the GPU never runs dry: the
    times are a step late, which changes no difference between them.
    """

    def __init__(self) -> None:
        self._before: Any = None

    def tick(self) -> None:
        """Call it after each step, from where the step was given out."""
        if torch.cuda.is_available():
            event = torch.cuda.Event()
            event.record()
            if self._before is not None:
                self._before.synchronize()
            self._before = event
        print(time.monotonic(), flush=True)
