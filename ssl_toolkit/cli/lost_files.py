"""Weights files that a run began with and that are gone: a resumed run needs nothing of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from ssl_toolkit.distributed.ranks import is_rank_zero
from ssl_toolkit.run_folder import WEIGHTS


def without_lost_files(config: Namespace, run: Path) -> Namespace:
    """The configuration of a run that goes on from a checkpoint, for building its task without files that are gone.

    In the place of the weights file stands the run's own, which has the same network; the checkpoint's weights then
    overwrite what it holds, and those of a head. Where there is none yet, everything stays as it is.

    Args:
        config: Of the run, which is not changed.
        run: Its folder.
    """
    settings = config.model.init_args
    files = {name: settings.get(name) for name in ("weights", "head_weights")}
    # another task may have an argument of this name that is no file: a multi-task run's weights are numbers
    lost = [name for name, file in files.items() if isinstance(file, str) and not Path(file).exists()]
    own = run / WEIGHTS
    if not lost or ("weights" in lost and not own.is_file()):
        return config
    built = config.clone()
    for name in lost:
        if is_rank_zero():
            print(f"model.{name} {settings[name]} is no longer there, and not needed: the checkpoint has what it held")
        built.model.init_args[name] = str(own) if name == "weights" else None
    return built


def keep_provenance(task: Any, run: Path | None) -> None:
    """Has a task that was built from its run's own weights file tell where its first weights came from.

    Args:
        task: A downstream task, or any other.
        run: The folder of the run that goes on; None for a new one.
    """
    said = getattr(task, "pretraining", None)
    if run is not None and said is not None and said["weights"] == str(run / WEIGHTS):
        task.pretraining = said.get("pretraining")
