"""Learning rate logging, under a name that does not depend on the optimizer."""

from __future__ import annotations

from typing import Any

from lightning import Callback, LightningModule, Trainer

from ssl_toolkit.tracking.scalars import log_number


class LearningRate(Callback):
    """Logs ``train/lr``: the rate with which the step is about to be made.

    With a rate for each layer it is the largest, which is the one the user gave. (Lightning's own monitor names its
    metrics by the optimizer's class and the place of the group, ``lr-AdamW/pg1``.)
    """

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Logs the rate before the schedule moves it."""
        rates = [group["lr"] for optimizer in trainer.optimizers for group in optimizer.param_groups]
        if rates:
            log_number(pl_module, "train/lr", float(max(rates)))
