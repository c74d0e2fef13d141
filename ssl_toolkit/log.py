"""Numbers for the log that no GPU has to be asked for."""

from __future__ import annotations

import torch
from lightning import LightningModule


def log_number(module: LightningModule, name: str, value: float) -> None:
    """Logs a number that Python knows, of this process and this step.

    Of a plain number Lightning makes a tensor on the module's device, and that copy waits until a GPU has done all that
    it was given: once in each step, if the number is logged in each step.

    Args:
        module: The module in training.
        name: Of the metric.
        value: Of the metric.
    """
    module.log(name, torch.tensor(value, dtype=torch.float32), batch_size=1)
