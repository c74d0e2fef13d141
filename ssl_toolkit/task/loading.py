"""A task with the weights of a run's checkpoint, outside of a trainer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from ssl_toolkit.checkpoint import read_checkpoint
from ssl_toolkit.run_folder import CHECKPOINTS, CONFIG, WEIGHTS

M = TypeVar("M", bound=LightningModule)


def load_task(cls: type[M], path: Path, arguments: dict[str, Any]) -> M:
    """Builds a task and loads all of its state from a checkpoint, which is plain data and runs no code.

    Args:
        cls: The task's class.
        path: The checkpoint.
        arguments: Of the class.

    Raises:
        ValueError: In one line: it is no checkpoint of a run, arguments are missing, or a tensor does not fit.
    """
    if not path.exists():
        raise ValueError(f"there is no checkpoint {path}; a run has its own in RUN/{CHECKPOINTS}, step-*.ckpt")
    checkpoint = read_checkpoint(path)
    if isinstance(arguments.get("backbone"), Mapping):
        raise ValueError("backbone must be a network: backbone=ssl_toolkit.Backbone(**SETTINGS) with those of the run")
    try:
        task = cls(**arguments)
    except TypeError as error:
        missing = re.findall(r"'(\w+)'", str(error).partition(" missing ")[2])
        if unknown := re.search(r"unexpected keyword argument '(\w+)'", str(error)):
            raise ValueError(f"{cls.__name__} takes no argument {unknown[1]!r}") from None
        if not missing:
            raise
        run = path.parent.parent if (path.parent.parent / CONFIG).is_file() else Path("RUN")
        raise ValueError(
            f"{cls.__name__}.load_from_checkpoint needs {', '.join(missing)}, as the run had them "
            f"({run / CONFIG}); for the backbone alone: ssl_toolkit.load_backbone('{run / WEIGHTS}')"
        ) from None
    task.on_load_checkpoint(checkpoint)
    state = checkpoint["state_dict"]
    if any(isinstance(each, Tensor) and each.dtype == torch.float64 for each in state.values()):
        task.double()  # which float32 would round
    _check_fit(task, state, path)
    task.load_state_dict(state)
    return task


def _check_fit(task: LightningModule, state: dict[str, Tensor], path: Path) -> None:
    own = task.state_dict()
    shapes = [{name: list(each.shape) for name, each in side.items()} for side in (state, own)]
    differing = [name for name in own | state if shapes[0].get(name) != shapes[1].get(name)]
    if differing:
        first = differing[0]
        there, here = (str(side.get(first, "missing")) for side in shapes)
        raise ValueError(
            f"{path} is of another network than this {type(task).__name__}: {len(differing):,} of {len(own | state):,} "
            f"tensors differ, the first is {first} ({there} in the checkpoint, {here} here); give the run's arguments"
        )
