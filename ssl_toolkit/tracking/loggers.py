"""The loggers of a run: a CSV file in its folder, always, and Weights & Biases beside it unless switched off."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from ssl_toolkit.tracking.metrics_logger import MetricsLogger
from ssl_toolkit.tracking.weights_and_biases import GuardedWandbLogger, Wandb

Tracker = Wandb | Literal["wandb", "none"]
"""The type of the setting ``tracker``: ``none``, ``wandb`` (all defaults), or the settings of `Wandb` one by one."""

WANDB_ID = "wandb_id.txt"


def make_loggers(
    run_dir: str | Path,
    tracker: Tracker = "wandb",
    run_id: str | None = None,
    config: dict[str, Any] | None = None,
    pretraining: dict[str, Any] | None = None,
) -> list[Logger]:
    """The loggers of a run.

    Args:
        run_dir: The run's folder. If it holds a run already, its metrics file and its W&B run are continued.
        tracker: What to use beside the CSV file.
        run_id: The id of the W&B run. By default the one kept in the folder, or a new one.
        config: The resolved configuration, as plain data, for the W&B run.
        pretraining: Where the weights of a transfer run come from, as plain data, for the W&B run.

    Returns:
        The CSV logger first, so that Lightning takes its folder for the run's, then the W&B logger if there is one.
    """
    run_dir = Path(run_dir)
    loggers: list[Logger] = [MetricsLogger(run_dir)]
    if tracker == "none":
        return loggers
    settings = Wandb() if tracker == "wandb" else tracker
    if settings.mode == "auto" and os.environ.get("WANDB_MODE") == "disabled":
        return loggers
    config = dict(config or {})
    if pretraining is not None:
        config["pretraining"] = pretraining
    loggers.append(GuardedWandbLogger(run_dir, settings, run_id=_wandb_id(run_dir, run_id), config=config))
    return loggers


def _wandb_id(run_dir: Path, run_id: str | None) -> str:
    """The id kept in the folder; a new one is put there."""
    file = run_dir / WANDB_ID
    if run_id is None and file.is_file():
        return file.read_text(encoding="utf-8").strip()
    run_id = run_id or secrets.token_hex(4)
    if rank_zero_only.rank in (None, 0):
        run_dir.mkdir(parents=True, exist_ok=True)
        file.write_text(run_id + "\n", encoding="utf-8")
    return run_id
