"""Lightning logger of the file ``metrics.csv`` of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from ssl_toolkit.tracking.metrics_csv import FILE, MetricsFile


class MetricsLogger(CSVLogger):
    """Lightning's CSV logger, writing exactly ``RUN/metrics.csv``.

    Lightning's own deletes the file of an earlier start of the run, and rewrites it in place whenever a metric is new.

    Args:
        run_dir: The run's folder.
    """

    def __init__(self, run_dir: str | Path) -> None:
        super().__init__(save_dir=run_dir, name="", version="")
        self.run_dir = Path(run_dir)
        self._metrics_file: MetricsFile | None = None

    @property
    def root_dir(self) -> str:
        """The run's folder."""
        return str(self.run_dir)

    @property
    def log_dir(self) -> str:
        """The run's folder."""
        return str(self.run_dir)

    @property
    @rank_zero_experiment
    def experiment(self) -> MetricsFile:  # pyright: ignore[reportIncompatibleMethodOverride] - another class of writer
        """The file; it is opened when first asked for, by rank zero."""
        if self._metrics_file is None:
            self._metrics_file = MetricsFile(self.run_dir / FILE)
        return self._metrics_file

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        """Takes a row."""
        self.experiment.append(metrics, step=0 if step is None else step)

    @rank_zero_only
    def log_hyperparams(self, params: Any = None) -> None:
        """Does nothing: the run's folder has its ``config.yaml``."""

    @rank_zero_only
    def save(self) -> None:
        """Writes the rows that wait."""
        self.experiment.save()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Writes the rows that wait."""
        self.save()

    @rank_zero_only
    def drop_from(self, step: int) -> None:
        """Drops the rows of this step and of later ones.

        Lightning numbers rows by the batches done before, so a run resumed after N steps writes row N next.
        """
        self.experiment.drop_from(step)
