"""Early stopping, when a validation metric no longer improves."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from ssl_toolkit.callbacks.online_evaluation import OnlineEvaluation
from ssl_toolkit.callbacks.weight_average import averaged_weights
from ssl_toolkit.distributed.ranks import is_rank_zero
from ssl_toolkit.errors import nearest

_EVALUATED = "val/evaluation_seconds"


class EarlyStopping(Callback):
    """Early stopping: ends a run that no longer improves, and restores the best weights (Prechelt 1998).

    The metric is read whenever it has been measured. The learning rate's schedule is over the planned length,
    whenever the run ends.

    Args:
        patience: So many measurements in a row that are no better end the run, at least 1; by default it goes on to
            its planned end.
        monitor: The validation metric: ``val/loss``, ``val/top1``, ``val/knn_top1`` ...
        min_delta: By how much a value has to be better to count as better, 0 or more.
        mode: Whether small (``min``) or large (``max``) values are good; by default small ones of a loss, else large.
        restore_best: Export and test the weights of the best measurement instead of the last.
    """

    def __init__(
        self,
        patience: int | None = None,
        monitor: str = "val/loss",
        min_delta: float = 0.0,
        mode: Literal["min", "max"] | None = None,
        restore_best: bool = True,
    ) -> None:
        if patience is not None and patience < 1:
            raise ValueError(f"early_stopping.patience is {patience}, expected at least 1, or null for never")
        if not monitor.startswith("val/"):
            raise ValueError(f"early_stopping.monitor is {monitor!r}, expected a validation metric such as val/loss")
        if min_delta < 0:
            raise ValueError(f"early_stopping.min_delta is {min_delta}, expected 0 or more")
        if mode not in ("min", "max", None):
            raise ValueError(f"early_stopping.mode is {mode!r}, expected min or max")
        self.patience = patience
        self.monitor = monitor
        self.min_delta = min_delta
        self.mode: Literal["min", "max"] = mode or ("min" if "loss" in monitor else "max")
        self.restore_best = restore_best
        self._best: float | None = None
        self._best_step = 0
        self._best_weights: dict[str, Tensor] = {}
        self._num_worse = 0
        self._seen: Any = None
        self._finished = False

    @property
    def restored_step(self) -> int | None:
        """The step whose weights are in the task at the end of the run; None for those of the last."""
        return self._best_step if self._finished and self._best_weights else None

    def check(self, data: Any) -> None:
        """Raises a ValueError if there is nothing to look at."""
        if self.patience is not None and not data.num_images("val"):
            raise ValueError(
                f"early_stopping looks at {self.monitor}, but there are no validation {data.noun}: give "
                "data.val_fraction or data.val_path, or leave early_stopping.patience out"
            )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ends at once where a run is resumed that has stopped."""
        self._finished = False
        self._stop_if_enough(trainer)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Knows from now on that a value is old."""
        self._mark(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Looks at what the validation measured."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._look(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Looks at what callbacks measured, and at the name."""
        if self.patience is None:
            return
        self._look(trainer, pl_module)
        metrics = trainer.callback_metrics
        callbacks = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue] - set out of its sight
        waits = any(isinstance(each, OnlineEvaluation) and each.every_n_epochs != 0 for each in callbacks)
        measured = any(name.startswith("val/") for name in metrics) and (_EVALUATED in metrics or not waits)
        if self.monitor not in metrics and measured:
            names = [name for name in metrics if name.startswith("val/")]
            raise ValueError(
                f"early_stopping.monitor is {self.monitor!r}, but the run measures {', '.join(sorted(names))}"
                f"{nearest(self.monitor, names)}"
            )

    def _mark(self, trainer: Trainer) -> None:
        """Puts a tensor into the place of the metric that only the next measurement replaces."""
        metrics = trainer.callback_metrics
        if self.monitor in metrics:
            self._seen = metrics[self.monitor] = metrics[self.monitor].clone()

    def _look(self, trainer: Trainer, task: LightningModule) -> None:
        found = trainer.callback_metrics.get(self.monitor)
        if self.patience is None or found is None or found is self._seen:
            return
        value = trainer.strategy.broadcast(float(found))
        sign = 1 if self.mode == "max" else -1
        if math.isfinite(value) and (self._best is None or sign * (value - self._best) > self.min_delta):
            self._best, self._best_step, self._num_worse = value, trainer.global_step, 0
            if self.restore_best:
                self._keep(trainer, task)
        else:
            self._num_worse += 1
        self._mark(trainer)
        self._stop_if_enough(trainer)

    # validation runs in inference mode, whose tensors are of no use later
    @torch.inference_mode(False)
    @torch.no_grad()
    def _keep(self, trainer: Trainer, task: LightningModule) -> None:
        with averaged_weights(trainer, task):
            self._best_weights = {name: each.to("cpu", copy=True) for name, each in task.state_dict().items()}

    def _stop_if_enough(self, trainer: Trainer) -> None:
        if self.patience is not None and self._num_worse >= self.patience:
            trainer.should_stop = True

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Goes back to the best weights."""
        if self._best_weights:
            pl_module.load_state_dict(self._best_weights)
        self._finished = True

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Says what happened; goes back to the best weights where a stopped run was resumed."""
        if self.patience is None:
            return
        if not self._finished:
            self.on_train_end(trainer, pl_module)
        if is_rank_zero():
            print(self.verdict(trainer.global_step))

    def verdict(self, step: int) -> str:
        """One line on how the run ended.

        Args:
            step: The run's last.
        """
        if self._best is None:
            return f"early stopping: {self.monitor} was never measured"
        best = f"the best {self.monitor}, {self._best:.4g}, was measured at step {self._best_step:,}"
        if self.patience is not None and self._num_worse >= self.patience:
            text = f"stopped early at step {step:,}: {best}, and {self._num_worse:,} measurements since are no better"
        else:
            text = f"trained to the planned end at step {step:,}: {best}"
        return f"{text}; its weights are kept" if self._best_weights else text

    def state_dict(self) -> dict[str, Any]:
        """What was measured so far, with the best weights."""
        if self.patience is None:
            return {}
        return {
            "best": self._best,
            "best_step": self._best_step,
            "best_weights": self._best_weights,
            "num_worse": self._num_worse,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from there."""
        self._best, self._best_step = state_dict["best"], state_dict["best_step"]
        self._best_weights, self._num_worse = state_dict["best_weights"], state_dict["num_worse"]
