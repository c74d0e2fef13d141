"""What `benchmarks/throughput.py` gives the run that it measures."""

import time
from typing import Any

from lightning import Callback


class EachStep(Callback):
    """Prints the time after each step."""

    def on_train_batch_end(self, *_: Any) -> None:
        """Prints the time."""
        print(time.monotonic(), flush=True)
