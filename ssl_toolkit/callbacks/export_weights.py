"""Export of the weights during the run."""

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
from ssl_toolkit.run_folder import MODEL, WEIGHTS
from ssl_toolkit.weights.model import add_temperature, save_model
from ssl_toolkit.weights.reading import WeightsError


class ExportWeights(Callback):
    """Writes ``RUN/backbone.safetensors`` at the end of each epoch and of the run.

    Of a task that names classes, ``RUN/model.safetensors`` stands beside it: the whole network, for ``predict``. The
    temperature that the test has found is added to it.

    The run's folder is the trainer's ``default_root_dir``. The headers are what the task tells of itself
    (``weights_header``, ``model_header``). Where the weights are averaged, it is the average.
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

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the temperature that the test has found into the model file; if there is no room, the run is whole."""
        task, model = cast(Any, pl_module), Path(trainer.default_root_dir) / MODEL
        found: float | None = getattr(task, "found_temperature", None)
        if found is None or not trainer.is_global_zero or not model.is_file():
            return
        try:
            add_temperature(model, _backbone(task), found)
        except (OSError, WeightsError) as error:
            print(f"\ncould not write the temperature into {MODEL} ({error})", file=sys.stderr)

    def _write(self, trainer: Trainer, pl_module: LightningModule) -> None:
        with averaged_weights(trainer, pl_module):
            self._write_current(trainer, pl_module)
        self._written_step = trainer.global_step

    def _write_current(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # any task of this project has these; Lightning's type does not know of them
        task = cast(Any, pl_module)
        predicts: bool = getattr(task, "predicts", False)
        backbone = _backbone(task)
        # where the weights are sharded, each is gathered once
        of_all = full_state_dict(task) if predicts else {}
        prefix = "backbone.model."
        of_backbone = {name.removeprefix(prefix): each for name, each in of_all.items() if name.startswith(prefix)}
        tensors = of_backbone or full_state_dict(backbone.model)
        if not trainer.is_global_zero:
            return
        run, step = Path(trainer.default_root_dir), _restored_step(trainer)
        restored = {} if step is None else {"step": step}
        weights.save_backbone(run / WEIGHTS, backbone, {**task.weights_header(), **restored}, tensors)
        if predicts:
            save_model(run / MODEL, backbone, of_all, {**task.model_header(), **restored})


def _backbone(task: Any) -> Backbone:
    """Of a teacher and its student the one that a task exports."""
    return getattr(task, "exported_backbone", task.backbone)


def _restored_step(trainer: Trainer) -> int | None:
    callbacks = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue] - set out of its sight
    steps = (each.restored_step for each in callbacks if isinstance(each, EarlyStopping))
    return next((step for step in steps if step is not None), None)
