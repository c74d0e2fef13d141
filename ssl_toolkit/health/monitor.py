"""Health monitor of a run: measures the network every so many steps, and says in a sentence what is wrong."""

from __future__ import annotations

import contextlib
import json
import math
import shlex
from pathlib import Path
from statistics import median
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from ssl_toolkit.distributed.dtensor import full_tensor
from ssl_toolkit.health.collapse import Outputs, judge
from ssl_toolkit.health.curves import read_curves
from ssl_toolkit.health.findings import Finding
from ssl_toolkit.health.layers import DeadUnits
from ssl_toolkit.health.pretext_accuracy import judge_pretext_accuracy
from ssl_toolkit.health.steps import RATIOS, update_ratios
from ssl_toolkit.health.trial import weights_of
from ssl_toolkit.io.atomic import write_atomically
from ssl_toolkit.run_folder import WATCHED, WEIGHTS
from ssl_toolkit.task import Task
from ssl_toolkit.tracking.metrics_csv import read_metrics
from ssl_toolkit.tracking.metrics_logger import MetricsLogger
from ssl_toolkit.tracking.scalars import log_number

_TIMES = 2  # a finding of one step may be chance
_HISTORY = 20
_EXPLODED = 100.0
_VANISHED = 1e-7
_MOST_DEAD = 0.5


class HealthMonitor(Callback):
    """Health monitor: measures a step every so many steps, and says in a plain sentence what is wrong, once.

    Logs ``train/update_ratio`` (the length of a step over that of the weight, median of the layers),
    ``train/gradient_norm``, ``train/dead_units`` (the fraction of units that are 0 for a whole batch, in the worst
    layer), ``train/feature_spread`` and ``train/feature_rank`` (see `ssl_toolkit.evaluation`; 0 and 1 for features that
    have collapsed), and the same of the embeddings for a task that has a ``projector``. At the end of the run it reads
    under- and overfitting off the curves in ``metrics.csv``, and whether a pretext task is solved better than
    photographs allow. What it finds is printed, kept in ``RUN/watch.json``, and
    shown in the report. The training is not touched: the weights are the same, bit for bit, with and without it.

    Args:
        every_n_steps: Optimizer steps from one measurement to the next; 0 for never.
    """

    def __init__(self, every_n_steps: int = 100) -> None:
        if every_n_steps < 0:
            raise ValueError(f"watch.every_n_steps is {every_n_steps}, expected at least 0 (never)")
        self.every_n_steps = every_n_steps
        self.findings: dict[str, Finding] = {}
        self._seen: dict[str, int] = {}
        self._norms: list[float] = []
        self._values: dict[str, float] = {}
        self._dead: DeadUnits | None = None
        self._outputs: Outputs | None = None
        self._measured_step = -1
        self._before: dict[str, Tensor] = {}

    @property
    def state_key(self) -> str:
        """The key in checkpoints, which is that of saved runs."""
        return "Watch"

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to say and to log the same."""
        findings = {kind: list(finding) for kind, finding in self.findings.items()}
        return {"findings": findings, "seen": self._seen, "norms": self._norms, "values": self._values}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on as the run left off."""
        self.findings = {kind: Finding(*finding) for kind, finding in state_dict["findings"].items()}
        self._seen, self._norms = dict(state_dict["seen"]), list(state_dict["norms"])
        self._values = dict(state_dict["values"])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forgets what a killed run wrote after its last checkpoint."""
        self._write(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Begins to measure the forward pass, at the first micro-batch of a step that is measured."""
        if not self._due(trainer) or self._measured_step == trainer.global_step:
            return
        self._measured_step = trainer.global_step
        # a compiled backbone would be compiled again for the hooks
        is_compiled = getattr(pl_module, "compile_backbone", False)
        self._dead = None if is_compiled else DeadUnits(pl_module)
        self._outputs = Outputs(pl_module, ["projector"] if is_compiled else ["backbone", "projector"])

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Ends the measurement: gradient checkpointing computes the forward pass again."""
        self._stop()

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Measures the gradient, and keeps the weights."""
        if not self._due(trainer):
            return
        weights = weights_of(pl_module)
        gradients = {name: weight.grad for name, weight in weights.items() if weight.grad is not None}
        if not gradients:
            return
        norms = torch.stack([full_tensor(gradient.float().norm()) for gradient in gradients.values()])
        self._judge_gradients(list(gradients), (norms / _loss_scale(trainer, optimizer)).tolist(), trainer)
        self._before = {name: weights[name].detach().clone() for name in gradients}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measures the step, and logs the latest values."""
        if self._before:
            self._judge_step(trainer, pl_module)
            self._before = {}
        for name, value in self._values.items():
            log_number(pl_module, f"train/{name}", value)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reads the curves, and repeats what was found."""
        if not trainer.is_global_zero or not self.every_n_steps:
            return
        for logger in trainer.loggers:
            if isinstance(logger, MetricsLogger):
                logger.save()
        metrics = read_metrics(trainer.default_root_dir)
        earlier = list(self.findings.values())
        curves = metrics.get("train/loss", []), metrics.get("val/loss", [])
        found = [read_curves(*curves, trainer.global_step)]
        known = getattr(pl_module, "photograph_accuracy", None)
        # drawings are no photographs, and may tell more
        if known is not None and getattr(getattr(trainer, "datamodule", None), "of_photographs", True):
            weights = shlex.quote(str(Path(trainer.default_root_dir) / WEIGHTS))
            found.append(judge_pretext_accuracy(known, metrics, weights))
        for finding in filter(None, found):
            self.findings.setdefault(finding.kind, finding)
            print(f"watch: {finding}")
            self._write(trainer)
        for finding in earlier:
            print(f"watch, again: {finding.what}")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Removes its hooks."""
        self._stop()

    def _due(self, trainer: Trainer) -> bool:
        return bool(self.every_n_steps) and (trainer.global_step + 1) % self.every_n_steps == 0

    def _stop(self) -> None:
        for listener in (self._dead, self._outputs):
            if listener is not None:
                listener.stop()

    def _judge_gradients(self, names: list[str], norms: list[float], trainer: Trainer) -> None:
        whole = math.sqrt(sum(norm**2 for norm in norms))
        usual = median(self._norms) if len(self._norms) > 2 else math.inf
        # in float16 the scaler looks for too large a scale, and skips the step
        scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
        self._say(
            "exploding gradients",
            (not math.isfinite(whole) and not scaled) or whole > _EXPLODED * usual,
            f"The gradient's norm is {whole:.3g} at step {trainer.global_step}, where {usual:.3g} was usual.",
            "Lower optimizer.lr, lengthen the warm-up, or set trainer.gradient_clip_val: 1.",
            trainer,
            times=1,
        )
        if math.isfinite(whole):
            self._values["gradient_norm"] = whole
            self._norms = [*self._norms, whole][-_HISTORY:]
        first, largest = norms[0], max(norms)
        self._say(
            "vanishing gradients",
            first < _VANISHED * largest,
            f"Hardly any gradient reaches {names[0]}: {first:.1e}, where other layers have up to {largest:.1e}.",
            "Use normalisation layers or residual branches, or another initialisation (ssl-toolkit diagnose).",
            trainer,
        )

    def _judge_step(self, trainer: Trainer, pl_module: LightningModule) -> None:
        ratios = update_ratios(self._before, weights_of(pl_module))
        fraction = _fraction_of_rate(trainer, pl_module)
        if ratios and fraction > 0.01:  # a rate that is nearly 0 says nothing
            self._values["update_ratio"] = middle = median(ratios.values())
            at_peak = middle / fraction
            self._say(
                "learning rate",
                not RATIOS[0] <= at_peak <= RATIOS[1] and middle > 0,
                f"The learning rate is too {'large' if at_peak > RATIOS[1] else 'small'}: a step changes a weight by "
                f"{100 * at_peak:.2g} % of its size (median of the layers, at the full rate), where 0.1 % is usual.",
                f"{'Divide' if at_peak > RATIOS[1] else 'Multiply'} optimizer.lr by 10.",
                trainer,
            )
        fractions = self._dead.fractions() if self._dead is not None else {}
        self._dead = None
        if fractions:
            worst = max(fractions, key=lambda name: fractions[name])
            self._values["dead_units"] = fractions[worst]
            self._say(
                "dead units",
                fractions[worst] > _MOST_DEAD,
                f"{100 * fractions[worst]:.0f} % of the units of {worst} are 0 for the whole batch and learn nothing.",
                "Lower optimizer.lr or lengthen the warm-up; begin anew, as dead units rarely come back.",
                trainer,
            )
        self._judge_extents(trainer, pl_module)

    def _judge_extents(self, trainer: Trainer, pl_module: LightningModule) -> None:
        extents = self._outputs.extents() if self._outputs is not None else {}
        self._outputs = None
        unlabelled = not getattr(pl_module, "is_supervised", True)
        for name, found in extents.items():
            self._values |= {f"{name}_spread": found.spread, f"{name}_rank": found.rank}
            if finding := judge(name, found, trainer.global_step, by_rank=unlabelled):
                self._say(f"{finding.kind} of {name}s", True, finding.what, finding.advice, trainer, times=1)

    def _say(self, kind: str, wrong: bool, what: str, advice: str, trainer: Trainer, times: int = _TIMES) -> None:
        self._seen[kind] = self._seen.get(kind, 0) + 1 if wrong else 0
        if self._seen[kind] >= times and kind not in self.findings:
            self.findings[kind] = Finding(kind, what, advice)
            if trainer.is_global_zero:
                print(f"watch: {self.findings[kind]}")
            self._write(trainer)

    def _write(self, trainer: Trainer) -> None:
        """Keeps what was found in the run's folder."""
        if not trainer.is_global_zero:
            return
        file = Path(trainer.default_root_dir) / WATCHED
        with contextlib.suppress(OSError):  # a full disk is for others to report
            if self.findings:
                found = [finding._asdict() for finding in self.findings.values()]
                write_atomically(file, json.dumps(found, indent=1) + "\n")
            else:
                file.unlink(missing_ok=True)


def _fraction_of_rate(trainer: Trainer, pl_module: LightningModule) -> float:
    """The schedule's factor of the step that was just made; 1 for a task that has none."""
    if not isinstance(pl_module, Task):
        return 1.0
    per_epoch = trainer.num_training_batches / trainer.accumulate_grad_batches
    total = int(trainer.estimated_stepping_batches)
    return pl_module.schedule.factor(max(0, trainer.global_step - 1), total, per_epoch)


def _loss_scale(trainer: Trainer, optimizer: torch.optim.Optimizer) -> float:
    """What the gradients are still multiplied by: in float16 a fused optimizer divides by the scale itself."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    fused = getattr(optimizer, "_step_supports_amp_scaling", False)
    return float(scaler.get_scale()) if scaler is not None and fused else 1.0
