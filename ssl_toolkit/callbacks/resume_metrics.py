"""Metrics file of a resumed run, without duplicate rows."""

from __future__ import annotations

from lightning import Callback, LightningModule, Trainer

from ssl_toolkit.tracking.metrics_logger import MetricsLogger


class ResumeMetrics(Callback):
    """Drops the rows that a killed run wrote after its last checkpoint, since the resumed run writes them again."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compares the file with the step that was restored (0 in a new run)."""
        for logger in trainer.loggers:
            if isinstance(logger, MetricsLogger):
                logger.drop_from(trainer.global_step)
