"""Scalars for the log that need no synchronisation with a GPU."""

from __future__ import annotations

import torch
from lightning import LightningModule


def log_number(module: LightningModule, name: str, value: float) -> None:
    """Logs a number that Python knows, of this process and this step.

    A `ssl_toolkit.task.Task` keeps it for the rows that are written: to log takes Lightning most of a millisecond. Of a
    plain number Lightning would also make a tensor on the module's device, and that copy waits until a GPU has done all
    that it was given.

    Args:
        module: The module in training.
        name: Of the metric.
        value: Of the metric.
    """
    numbers = getattr(module, "numbers", None)
    if isinstance(numbers, dict):
        numbers[name] = value
    else:
        log_now(module, {name: value})


def log_now(module: LightningModule, numbers: dict[str, float]) -> None:
    """Logs them, whether or not a row is written."""
    for name, value in numbers.items():
        module.log(name, torch.tensor(value, dtype=torch.float32), batch_size=1)
