"""The loggers of a run: a CSV file in its folder, always, and Weights & Biases beside it unless switched off."""

from __future__ import annotations

import os
import re
import secrets
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.loggers.logger import Logger

from ssl_toolkit.tracking.metrics_logger import MetricsLogger
from ssl_toolkit.tracking.weights_and_biases import WANDB_ID, GuardedWandbLogger, Wandb

Tracker = Wandb | Literal["wandb", "none"]
"""The type of the setting ``tracker``: ``none``, ``wandb`` (all defaults), or the settings of `Wandb` one by one."""


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
    """The id kept in the folder, where a new one is put when the W&B run starts.

    A new run takes that of ``WANDB_RUN_ID``, by which the agent of a sweep knows the runs that it starts.
    """
    file = run_dir / WANDB_ID
    kept = file.read_text(encoding="utf-8", errors="replace").strip() if file.is_file() else ""
    for given in (run_id, kept, os.environ.get("WANDB_RUN_ID")):
        if given and re.fullmatch(r"[\w.-]{1,128}", given, re.ASCII):
            return given
        if given:
            print(f"{given[:40]!r} is no id of a W&B run: another one is taken")
    return secrets.token_hex(4)
