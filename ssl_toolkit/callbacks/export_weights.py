"""The backbone's weights, ready for use while the run still goes on."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, cast

from lightning import Callback, LightningModule, Trainer

from ssl_toolkit import weights
from ssl_toolkit.run import WEIGHTS


class ExportWeights(Callback):
    """Writes ``RUN/backbone.safetensors`` at the end of each epoch and of the run.

    The run's folder is the trainer's ``default_root_dir``. The file's header is what the task tells of itself
    (``weights_header``).
    """

    def __init__(self) -> None:
        self._written_step = -1

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the epoch's weights; if there is no room, the run goes on without."""
        try:
            self._write(trainer, pl_module)
        except OSError as error:
            print(f"\ncould not write {WEIGHTS} ({error}); the next epoch tries again", file=sys.stderr)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the run's weights, unless its last epoch has just done so."""
        if trainer.global_step != self._written_step:
            self._write(trainer, pl_module)

    def _write(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            # any task of this project has the two; Lightning's type knows of neither
            task = cast(Any, pl_module)
            weights.save_backbone(Path(trainer.default_root_dir) / WEIGHTS, task.backbone, task.weights_header())
        self._written_step = trainer.global_step
