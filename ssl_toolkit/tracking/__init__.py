"""Experiment tracking: a CSV file in the run's folder, always, and Weights & Biases unless switched off."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ssl_toolkit.lazy import lazy_names

if TYPE_CHECKING:
    from ssl_toolkit.tracking.loggers import Tracker, make_loggers
    from ssl_toolkit.tracking.metrics_logger import MetricsLogger
    from ssl_toolkit.tracking.weights_and_biases import Wandb, offline

__all__ = ["MetricsLogger", "Tracker", "Wandb", "make_loggers", "offline"]

# to read a metrics file, a report needs neither torch nor Lightning
__getattr__ = lazy_names(
    __name__,
    {
        "MetricsLogger": "metrics_logger",
        "Tracker": "loggers",
        "Wandb": "weights_and_biases",
        "make_loggers": "loggers",
        "offline": "weights_and_biases",
    },
)
