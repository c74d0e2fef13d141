"""Every pretext task and every downstream task, found by looking, each with a recipe that trains in a second.

What is promised of all methods is tested through this module, so that a new task cannot be left out: it is found in
its package, and a test of this list fails until it has its arguments below.
"""

from __future__ import annotations

import copy
import importlib
import inspect
import pkgutil
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

import downstream
import pretext
from pretext.base import PretextTask
from ssl_toolkit.task import Task

BACKBONE = {"name": "resnet10t", "kwargs": {"stem_width": 8, "channels": [8, 8, 16, 16], "drop_path_rate": 0.1}}
OPTIMIZER = {
    "optimizer": {"class_path": "ssl_toolkit.optim.AdamW", "init_args": {"lr": 0.002}},
    "schedule": {"class_path": "ssl_toolkit.schedule.Cosine", "init_args": {"warmup_steps": 2}},
}

# what each task needs to be small, by its class's name
ARGUMENTS: dict[str, dict[str, Any]] = {
    "BarlowTwins": {"view": {"size": 24}, "projector_widths": [16, 8]},
    "SimCLR": {"view": {"size": 24}, "projector_widths": [16, 8]},
    "BYOL": {"view": {"size": 24}, "projector_widths": [16, 8], "predictor_width": 16},
    "MoCoV2": {"view": {"size": 24}, "projector_widths": [16, 8], "queue_size": 20, "momentum": 0.9},
    "Jigsaw": {
        "backbone": {**BACKBONE, "stem": "small"},
        "view": {"size": 36, "blur": 0},
        "patch_size": 12,
        "jitter": 0,
        "num_permutations": 5,
        "patch_width": 8,
        "hidden_width": 16,
    },
    "PatchPosition": {
        "backbone": {**BACKBONE, "stem": "small"},
        "view": {"size": 36, "blur": 0},
        "patch_size": 12,
        "jitter": 0,
        "hidden_width": 16,
    },
    "Classification": {"head": "mlp", "hidden": 8, "dropout": 0.2},
    "SequenceClassification": {
        "head": {"class_path": "downstream.sequence.RecurrentHead", "init_args": {"hidden": 8, "dropout": 0.2}}
    },
}
IMAGES = {"source": "procedural", "max_images": 60, "image_size": 36, "batch_size": 8, "cache": "memory"}


@cache
def tasks() -> dict[str, type[Task]]:
    """All tasks by their class's name."""
    found = {}
    for package in (pretext, downstream):
        for module in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
            for name, each in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
                is_task = issubclass(each, Task) and not inspect.isabstract(each)
                if is_task and each.__module__.startswith(module.name) and not name.startswith("_"):
                    found[name] = each
    return found


def pretext_tasks() -> dict[str, type[PretextTask]]:
    """The tasks that need no labels."""
    return {name: each for name, each in tasks().items() if issubclass(each, PretextTask)}


def verb(name: str) -> str:
    """What trains the task on the command line."""
    return "pretrain" if name in pretext_tasks() else "transfer"


def recipe(name: str, folder: Path, **trainer: Any) -> dict[str, Any]:
    """A complete recipe of the task: three epochs of five or six steps.

    Args:
        name: The task's class.
        folder: An empty folder, for a task whose data have to be files.
        **trainer: Arguments of the trainer.
    """
    cls = tasks()[name]
    data: dict[str, Any] = dict(IMAGES)
    if cls.data_class.noun == "sequences":  # pyright: ignore[reportAttributeAccessIssue]
        data = {"path": str(write_sequences(folder)), "labels": "folder", "image_size": 16, "batch_size": 8}
    written: dict[str, Any] = {
        "seed": 0,
        "model": {
            "class_path": f"{cls.__module__}.{cls.__qualname__}",
            "init_args": copy.deepcopy({"backbone": BACKBONE, **OPTIMIZER, **ARGUMENTS[name]}),
        },
        "data": data,
        "trainer": {"max_epochs": 3, "accelerator": "cpu", **trainer},
        "tracker": "none",
    }
    if verb(name) == "pretrain":
        written["evaluation"] = {"every_n_epochs": 0}
    return written


def write_sequences(folder: Path) -> Path:
    """Sixty short sequences of two classes, as tensors."""
    random = np.random.default_rng(0)
    for number in range(60):
        file = folder / ("rising" if number % 2 else "falling") / f"{number}.npy"
        file.parent.mkdir(parents=True, exist_ok=True)
        frames = np.sort(random.integers(0, 256, (2 + number % 3, 16, 16, 3), dtype=np.uint8), axis=0)
        np.save(file, frames if number % 2 else frames[::-1])
    return folder
