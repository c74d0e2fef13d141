"""Runs of any method, and what they are compared by: all that their checkpoints hold, and the batches they saw."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from torch.utils._pytree import tree_map

import methods
from ssl_toolkit.batch import Images
from ssl_toolkit.run_folder import CHECKPOINTS, newest_checkpoint
from ssl_toolkit.task import Task


def arguments_for(name: str, folder: Path, changes: dict[str, Any] | None = None, **trainer: Any) -> list[str]:
    """The arguments that train a method, but for the run's folder.

    Args:
        name: The task's class.
        folder: Where its recipe and, if need be, its data are put.
        changes: Sections of the recipe, merged into those of `methods`.
        **trainer: Arguments of the trainer.
    """
    recipe = methods.recipe(name, folder / "data", **trainer)
    for section, values in (changes or {}).items():
        recipe[section] = {**recipe.get(section, {}), **values}
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(recipe))
    return ["-c", str(file)]


def checkpoint(run: Path, step: int | None = None) -> dict[str, Any]:
    """What a checkpoint of a run holds, the newest by default, but for Lightning's own counters.

    They count what was begun and ended, hooks and validations too, and a run that is resumed after the last step of an
    epoch does not repeat the validation that follows it. The step and the epoch are there without them.
    """
    file = newest_checkpoint(run) if step is None else checkpoint_file(run, step)
    content = torch.load(file, weights_only=True)
    del content["loops"]
    return content


def checkpoint_file(run: Path, step: int) -> Path:
    """Where a run keeps the checkpoint of a step."""
    return run / CHECKPOINTS / f"step-{step:010d}.ckpt"


def copy_until(run: Path, step: int, copy: Path) -> Path:
    """A copy of a run as it was after a step; it must have kept the checkpoint."""
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("*.ckpt", "*.ckpt.sha256"))
    for suffix in ("", ".sha256"):
        file = checkpoint_file(run, step)
        shutil.copy(f"{file}{suffix}", f"{checkpoint_file(copy, step)}{suffix}")
    return copy


def differences(first: Any, second: Any, place: str = "") -> list[str]:
    """The places where two nested containers differ; tensors are compared by their bits."""
    if type(first) is not type(second):
        return [f"{place}: {type(first).__name__}, {type(second).__name__}"]
    if isinstance(first, torch.Tensor):
        same = first.dtype == second.dtype and first.shape == second.shape and _bits(first) == _bits(second)
        return [] if same else [place]
    if isinstance(first, dict):
        if first.keys() != second.keys():
            return [f"{place}: keys {list(first)}, {list(second)}"]
        return [each for key in first for each in differences(first[key], second[key], f"{place}/{key}")]
    if isinstance(first, (list, tuple)):
        if len(first) != len(second):
            return [f"{place}: {len(first)} and {len(second)} entries"]
        pairs = enumerate(zip(first, second, strict=True))
        return [each for number, pair in pairs for each in differences(*pair, f"{place}/{number}")]
    return [] if first == second else [f"{place}: {first!r}, {second!r}"]


def _bits(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


@contextlib.contextmanager
def batches_noted(note: Callable[[list[Any]], Any]) -> Iterator[None]:
    """Has each training batch noted before its step: the steps done, the epoch, its place there, and its samples."""
    original = Task.on_train_batch_start

    def on_train_batch_start(self: Any, batch: Any, batch_idx: int) -> None:
        note([self.global_step, batch.epoch, batch_idx, batch.indices.tolist()])
        original(self, batch, batch_idx)

    Task.on_train_batch_start = on_train_batch_start
    try:
        yield
    finally:
        Task.on_train_batch_start = original


def without_dropout(recipe: Any) -> Any:
    """The recipe of a network that draws nothing itself."""
    if not isinstance(recipe, dict):
        return recipe
    return {key: 0.0 if "drop" in key else without_dropout(value) for key, value in recipe.items()}


@contextlib.contextmanager
def views_made_one_by_one(name: str) -> Iterator[None]:
    """Views are float32, and rounded otherwise in a batch of another size; made one by one they are always the same."""
    cls: Any = methods.tasks()[name]
    original = cls.make_views

    def make_views(self, images, keys):
        parts = [
            original(self, Images(images.pixels[row : row + 1], images.sizes[row : row + 1]), keys[row : row + 1])
            for row in range(len(keys))
        ]
        return tree_map(lambda *each: torch.cat(each), *parts)

    cls.make_views = make_views
    try:
        yield
    finally:
        cls.make_views = original
