"""Export of the backbone's weights during the run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, cast

from lightning import Callback, LightningModule, Trainer

from ssl_toolkit import weights
from ssl_toolkit.callbacks.early_stopping import EarlyStopping
from ssl_toolkit.callbacks.weight_average import averaged_weights
from ssl_toolkit.distributed.dtensor import full_state_dict
from ssl_toolkit.modules import Backbone
from ssl_toolkit.run_folder import WEIGHTS


class ExportWeights(Callback):
    """Writes ``RUN/backbone.safetensors`` at the end of each epoch and of the run.

    The run's folder is the trainer's ``default_root_dir``. The file's header is what the task tells of itself
    (``weights_header``). Where the weights are averaged, it is the average.
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
        if trainer.global_step != self._written_step or _restored_step(trainer) is not None:
            self._write(trainer, pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the weights where there was nothing left to train: the run may have been killed before it did."""
        if self._written_step < 0:
            self._write(trainer, pl_module)

    def _write(self, trainer: Trainer, pl_module: LightningModule) -> None:
        with averaged_weights(trainer, pl_module):
            self._write_current(trainer, pl_module)
        self._written_step = trainer.global_step

    def _write_current(self, trainer: Trainer, pl_module: LightningModule) -> None:
        tensors = full_state_dict(_backbone(pl_module).model)
        if trainer.is_global_zero:
            # any task of this project has the two; Lightning's type knows of neither
            task = cast(Any, pl_module)
            header = task.weights_header()
            if (step := _restored_step(trainer)) is not None:
                header["step"] = step
            weights.save_backbone(Path(trainer.default_root_dir) / WEIGHTS, _backbone(task), header, tensors)


def _backbone(task: Any) -> Backbone:
    """Of a teacher and its student the one that a task exports."""
    return getattr(task, "exported_backbone", task.backbone)


def _restored_step(trainer: Trainer) -> int | None:
    callbacks = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue] - set out of its sight
    steps = (each.restored_step for each in callbacks if isinstance(each, EarlyStopping))
    return next((step for step in steps if step is not None), None)
