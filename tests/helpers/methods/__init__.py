"""Every method: each pretext and each downstream task, and each head of sequences, found by looking.

What is guaranteed of all methods is tested through this module, so that a new one cannot be left out: it is found in
its package, and a test fails until a module of its file's name in this folder says how it is small. What proves a
method is parametrized by `each`; what proves the core by `on_representatives`.
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
import pytest

import downstream
import pretext
from downstream.sequence import SequenceHead
from methods.method import BACKBONE, Method
from pretext.base import PretextTask
from ssl_toolkit.task import Task

OPTIMIZER = {
    "optimizer": {"class_path": "ssl_toolkit.optim.AdamW", "init_args": {"lr": 0.002}},
    "schedule": {"class_path": "ssl_toolkit.schedule.Cosine", "init_args": {"warmup_steps": 2}},
}
IMAGES = {"source": "procedural", "max_images": 60, "image_size": 36, "batch_size": 8, "cache": "memory"}

# One method for each trait that a task can have (`ssl_toolkit.task.Trait`): what proves the core runs on these.
REPRESENTATIVES = {
    "labels": "Classification",
    "several_rows": "Jigsaw",
    "several_sizes": "BYOL",
    "batch_statistics": "BarlowTwins",
    "teacher": "BYOL",
    "queue": "MoCoV2",
    "sequences": "SequenceClassification",
}


@cache
def found() -> dict[str, type[Any]]:
    """All concrete tasks and heads of sequences, by their class's name."""
    classes = {}
    for package in (pretext, downstream):
        for module in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
            for name, each in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
                wanted = issubclass(each, (Task, SequenceHead)) and not inspect.isabstract(each)
                own = each.__module__.startswith((module.name, SequenceHead.__module__.rpartition(".")[0]))
                if wanted and own and not name.startswith("_"):
                    classes[name] = each
    return classes


@cache
def table() -> dict[str, Method]:
    """What the tests know of each method, by its name."""
    entries: dict[str, Method] = {}
    for module in pkgutil.iter_modules(__path__, f"{__name__}."):
        entries |= getattr(importlib.import_module(module.name), "METHODS", {})
    return entries


@cache
def tasks() -> dict[str, type[Task]]:
    """The task of each method, pretext tasks first."""
    classes = {name: found()[each.task or name] for name, each in table().items()}
    return dict(sorted(classes.items(), key=lambda each: (not issubclass(each[1], PretextTask), each[0])))


def pretext_tasks() -> dict[str, type[PretextTask]]:
    """The tasks that need no labels."""
    return {name: each for name, each in tasks().items() if issubclass(each, PretextTask)}


def representatives() -> list[str]:
    """The methods that stand for all traits."""
    return list(dict.fromkeys(REPRESENTATIVES.values()))


def each(names: Any = None, quick: Any = None, others: Any = pytest.mark.slow) -> list[Any]:
    """Arguments of ``pytest.mark.parametrize`` for what proves a method: it costs seconds.

    A representative's belong to every run of the tests, by default another's to those in which its source has changed.

    Args:
        names: Some of the methods.
        quick: The methods for which it belongs to every run; by default the representatives.
        others: The mark of the other methods: ``slow``, or ``nightly`` for what few of its own lines can break.
    """
    quick = representatives() if quick is None else quick
    return [_parameter(name, () if name in quick else (others,)) for name in names or tasks()]


def on_representatives(names: Any = None, quick: bool = False) -> list[Any]:
    """Arguments of ``pytest.mark.parametrize`` for what proves the core: it costs up to a minute.

    Args:
        names: Some of the methods.
        quick: Seconds are enough for the representatives, which then belong to every run of the tests.
    """
    parameters = []
    for name in names or tasks():
        if name in representatives():
            parameters.append(pytest.param(name, marks=() if quick else (pytest.mark.slow,)))
        else:
            parameters.append(_parameter(name, (pytest.mark.nightly,)))
    return parameters


def _parameter(name: str, marks: tuple[Any, ...]) -> Any:
    return pytest.param(name, marks=(pytest.mark.method(name), *marks))


def command(name: str) -> str:
    """What trains the method on the command line."""
    return "pretrain" if name in pretext_tasks() else "transfer"


def needs_sequences(name: str) -> bool:
    """Whether the method reads sequences of images."""
    return tasks()[name].data_class.noun == "sequences"  # pyright: ignore[reportAttributeAccessIssue]


def recipe(name: str, folder: Path, **trainer: Any) -> dict[str, Any]:
    """A complete recipe of the method: three epochs of five or six steps.

    Args:
        name: The method.
        folder: An empty folder, for a method whose data have to be files.
        **trainer: Arguments of the trainer.
    """
    cls = tasks()[name]
    data: dict[str, Any] = {**IMAGES, **(table()[name].data or {})}
    if needs_sequences(name):
        data = {"path": str(write_sequences(folder)), "labels": "folder", "image_size": 16, "batch_size": 8}
        data |= table()[name].data or {}
    written: dict[str, Any] = {
        "seed": 0,
        "model": {
            "class_path": f"{cls.__module__}.{cls.__qualname__}",
            "init_args": copy.deepcopy({"backbone": BACKBONE, **OPTIMIZER, **table()[name].arguments}),
        },
        "data": data,
        "trainer": {"max_epochs": 3, "accelerator": "cpu", **trainer},
        "tracker": "none",
    }
    if command(name) == "pretrain":
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
