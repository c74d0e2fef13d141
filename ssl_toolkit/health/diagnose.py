"""The diagnosis of a recipe before its run: checks on copies of the task, with the run's own data and optimizer."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer

from ssl_toolkit.data import ImageData
from ssl_toolkit.health import checks, steps
from ssl_toolkit.health.findings import Check, Finding
from ssl_toolkit.health.layers import LayerStatistics, draw_layers
from ssl_toolkit.io.atomic import write_atomically
from ssl_toolkit.task import Task

if TYPE_CHECKING:
    from rich.console import Group

PICTURE = "layers.png"
FIGURES = "diagnosis.json"

_BATCH = 32
_FEW = 8
_FEWER = 4
_TRAINED = 6  # different batches that the trial steps take in turn

# arguments of the Trainer that the diagnosis sets itself, or that only a whole run needs
_OF_THE_RUN = {
    "callbacks", "plugins", "profiler", "fast_dev_run", "num_sanity_val_steps", "limit_val_batches", "devices",
    "num_nodes", "strategy", "max_time", "min_epochs", "min_steps", "precision", "val_check_interval",
    "check_val_every_n_epoch", "enable_model_summary", "enable_checkpointing", "logger",
}  # fmt: skip


class Diagnosis(NamedTuple):
    """What was found.

    Attributes:
        checks: What each check says.
        layers: Each layer at step 0.
        trial: A few steps of the recipe's optimizer.
    """

    checks: list[Check]
    layers: list[LayerStatistics]
    trial: steps.Trial

    @property
    def findings(self) -> list[Finding]:
        """What is wrong, in the order of the checks."""
        return [finding for check in self.checks for finding in check.findings]

    def ratio(self, layer: str) -> float | None:
        """The last update-to-weight ratio of a layer's weight; None for a layer that is not trained."""
        found = self.trial.ratios.get(f"{layer}.weight")
        return found[-1] if found else None

    def table(self) -> Group:
        """The checks, the layers, and the findings, for a console."""
        from rich.console import Group
        from rich.table import Table

        summary = Table(title="diagnosis", title_justify="left")
        for header in ("check", "measured", "expected", ""):
            summary.add_column(header)
        for check in self.checks:
            summary.add_row(check.name, check.measured, check.expected, "see below" if check.findings else "well")
        each = Table(title="layers at step 0 (standard deviations over a batch)", title_justify="left")
        each.add_column("layer", no_wrap=True)
        for header in ("outputs", "gradients", "dead", "update/weight"):
            each.add_column(header, justify="right")
        for layer in self.layers:
            each.add_row(
                layer.name,
                f"{layer.activations.std:.2g}",
                "none" if layer.gradients is None else f"{layer.gradients.std:.1e}",
                "" if layer.dead is None else f"{100 * layer.dead:.0f} %",
                "" if self.ratio(layer.name) is None else f"{self.ratio(layer.name):.1e}",
            )
        lines = [f"{place}. {finding}" for place, finding in enumerate(self.findings, start=1)]
        return Group(each, summary, *(lines or ["nothing found"]))

    def save(self, folder: Path) -> None:
        """Writes the figures (JSON) and the picture of the layers.

        Args:
            folder: Made if it is missing.
        """
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        layers = [
            {
                **layer._asdict(),
                "activations": layer.activations._asdict(),
                "gradients": None if layer.gradients is None else layer.gradients._asdict(),
            }
            for layer in self.layers
        ]
        described = {
            "checks": [
                {**check._asdict(), "findings": [finding._asdict() for finding in check.findings]}
                for check in self.checks
            ],
            "trial": self.trial._asdict(),
            "layers": layers,
        }
        write_atomically(folder / FIGURES, json.dumps(_without_nan(described), indent=1))
        figure = draw_layers(self.layers, "values of each layer at step 0 (root of the counts)")
        FigureCanvasAgg(figure)
        figure.savefig(folder / PICTURE, dpi=110)


def diagnose(task: Task, data: LightningDataModule, arguments: dict[str, Any]) -> Diagnosis:
    """Examines a task before its run, in float32 on one device and without regularizers.

    The task is set up as for a run and used up: the run itself needs a new one. torch's generator stays as it is.

    Args:
        task: Built from the recipe.
        data: Its data.
        arguments: Of Lightning's Trainer for the run.
    """
    task.regularizers = []
    task.compile_backbone = task.gradient_checkpointing = False
    examination = _Examination()
    passed = {name: value for name, value in arguments.items() if name not in _OF_THE_RUN}
    trainer = Trainer(
        **passed, devices=1, limit_val_batches=0, num_sanity_val_steps=0, callbacks=[examination], logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        use_distributed_sampler=False,
    )  # fmt: skip
    device = trainer.strategy.root_device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        trainer.fit(task, datamodule=data)
    assert examination.diagnosis is not None
    return examination.diagnosis


class _Examination(Callback):
    """Examines what is about to be trained, and stops before the first step."""

    def __init__(self) -> None:
        self.diagnosis: Diagnosis | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, Task)
        few = next(_batches(trainer, _FEW))
        batches = list(islice(_batches(trainer, _BATCH), _TRAINED))
        clipped = trainer.gradient_clip_val if trainer.gradient_clip_algorithm in (None, "norm") else 0.0
        per_epoch = trainer.num_training_batches / trainer.accumulate_grad_batches
        total = int(trainer.estimated_stepping_batches)
        trial = steps.try_steps(pl_module, batches, total, per_epoch, float(clipped or 0.0))
        layers = steps.examine_layers(pl_module, batches[0])
        found = [
            checks.initial_loss(pl_module, batches[0]),
            checks.overfit(pl_module, few),
            checks.gradient(pl_module, next(_batches(trainer, _FEWER))),
            steps.updates(trial),
            steps.depth(layers, trial),
            steps.dead_units(layers),
        ]
        self.diagnosis = Diagnosis(found, layers, trial)
        trainer.should_stop = True


def _batches(trainer: Trainer, size: int) -> Iterator[Any]:
    """Batches of the training images, small ones where the data allow it."""
    data = getattr(trainer, "datamodule", None)
    loader = trainer.train_dataloader
    if isinstance(data, ImageData):
        size = min(size, data.batch_size, data.num_images("train"))
        loader = data.loader("train", shuffle=True, batch_size=size, drop_last=True, for_training=True)
    for batch in loader or []:
        yield trainer.strategy.batch_to_device(batch)


def _without_nan(value: Any) -> Any:
    """JSON knows no numbers that are not finite: they become text."""
    if isinstance(value, dict):
        return {key: _without_nan(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(each) for each in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
