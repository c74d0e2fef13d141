"""Scalars for the log: numbers that need no synchronisation with a GPU, and means over batches and processes."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from lightning import LightningModule
from torch import Tensor

from ssl_toolkit.distributed.collectives import weighted_means


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


class WeightedScalars:
    """Means of scalars over batches and processes, whatever their sizes.

    Lightning's own mean over an epoch divides by a number of samples that is a mean over the processes, rounded down.
    """

    def __init__(self) -> None:
        self._found: dict[str, list[tuple[Tensor, int]]] = {}

    def add(self, prefix: str, scalars: Mapping[str, Tensor], weight: int) -> None:
        """Takes the means of a batch.

        Args:
            prefix: ``val`` for ``val/loss``.
            scalars: Scalars by name.
            weight: The number of samples whose mean each is.
        """
        for name, scalar in scalars.items():
            self._found.setdefault(f"{prefix}/{name}", []).append((scalar.detach(), weight))

    def means(self) -> dict[str, float]:
        """The means over all samples of all processes, by name; every process has to ask."""
        sums = {}
        for name, found in self._found.items():
            values = torch.stack([value for value, _ in found]).tolist()  # one wait for a GPU, not one for each
            weights = [weight for _, weight in found]
            sums[name] = sum(value * weight for value, weight in zip(values, weights, strict=True)), sum(weights)
        return weighted_means(sums)


def log_now(module: LightningModule, numbers: Mapping[str, float]) -> None:
    """Logs them, whether or not a row is written."""
    for name, value in numbers.items():
        module.log(name, torch.tensor(value, dtype=torch.float32), batch_size=1)
