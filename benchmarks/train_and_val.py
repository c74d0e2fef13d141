"""What `benchmarks/regularization_gap.py` gives the runs that it measures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer

FILE = "accuracies.json"


class Accuracies(Callback):
    """Measures training and validation images in the same way: without augmentation, noise and dropout.

    The run's folder gets a file: the curves, and the accuracies of the weights that the run ends with.
    """

    def __init__(self) -> None:
        self.curve: list[dict[str, float]] = []

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A point of the curves."""
        if not trainer.sanity_checking:
            self.curve.append({"epoch": trainer.current_epoch + 1, **self._measure(trainer, pl_module)})

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The end of the run, with whichever weights it has chosen."""
        final = {**self._measure(trainer, pl_module), "test": float(trainer.callback_metrics["test/top1"])}
        file = Path(trainer.default_root_dir) / FILE
        file.write_text(json.dumps({"curve": self.curve, "final": final}), encoding="utf-8")

    @staticmethod
    def _measure(trainer: Trainer, pl_module: Any) -> dict[str, float]:
        data: Any = trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue] - Lightning sets it
        fractions = {}
        for split in ("train", "val"):
            hits = total = 0
            for batch in data.loader(split, batch_size=500):
                batch = pl_module.transfer_batch_to_device(batch, pl_module.device, 0)
                with trainer.precision_plugin.forward_context():
                    predicted = pl_module.predict(batch).argmax(dim=1)
                hits += int((predicted == batch.labels).sum())
                total += len(batch.labels)
            fractions[split] = hits / total
        return fractions
