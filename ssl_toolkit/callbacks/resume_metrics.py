"""Metrics file of a resumed run, without duplicate rows."""

from __future__ import annotations

from lightning import Callback, LightningModule, Trainer

from ssl_toolkit.tracking.metrics_logger import MetricsLogger
from ssl_toolkit.tracking.weights_and_biases import GuardedWandbLogger


class ResumeMetrics(Callback):
    """Drops the rows that a killed run wrote after its last checkpoint, since the resumed run writes them again.

    Then a W&B run may start, which begins with the rows that are left.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compares the file with the step that was restored (0 in a new run)."""
        for logger in trainer.loggers:
            if isinstance(logger, MetricsLogger):
                logger.drop_from(trainer.global_step)
            if isinstance(logger, GuardedWandbLogger):
                logger.begin()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Of a finished run that was resumed there is no start and no row to come."""
        for logger in trainer.loggers:
            if isinstance(logger, GuardedWandbLogger):
                logger.log_finished_run()
