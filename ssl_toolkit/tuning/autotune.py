"""Autotune: the fastest settings, measured on the task and the machine at hand.

Settings are tried one after the other, each with the best of those before it: the precision, the memory format, and
what a task names in its `speed_settings`. A machine's answer is kept, so that the next run of the same kind starts at
once.
"""

from __future__ import annotations

import hashlib
import json
import math
import platform
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import LightningDataModule, Trainer

from ssl_toolkit.data.cache import default_cache_dir
from ssl_toolkit.distributed.ranks import from_rank_zero, num_cores, threads_are_chosen
from ssl_toolkit.io.atomic import write_atomically
from ssl_toolkit.perf.bfloat16 import has_native_bf16
from ssl_toolkit.task import Task
from ssl_toolkit.tuning.time_budget import Stopwatch, trial_trainer

# a setting that gains less than this is within what repeated measurements differ by
_LEAST_GAIN = 1.03
# ratios of times change little with the batch, and a CPU takes seconds for a whole one
_MOST_IMAGES_ON_CPU = 32

Settings = dict[str, Any]


class Trial(NamedTuple):
    """One measurement.

    Attributes:
        settings: By the key in a configuration.
        seconds: For a training batch; infinite if it failed.
    """

    settings: Settings
    seconds: float


class Choice(NamedTuple):
    """What was found.

    Attributes:
        settings: The fastest, by the key in a configuration.
        trials: All measurements, the first that of the settings to begin with.
        day: When it was measured (ISO).
    """

    settings: Settings
    trials: list[Trial]
    day: str

    def __str__(self) -> str:
        """One line."""
        settings = ", ".join(f"{_short(key)} {value}" for key, value in self.settings.items())
        chosen = next(trial.seconds for trial in self.trials if trial.settings == self.settings)
        others = [
            f"with {_difference(trial.settings, self.settings)} {trial.seconds / chosen:.2f} times as long"
            for trial in self.trials
            if trial.settings != self.settings and math.isfinite(trial.seconds)
        ]
        compared = f": a step takes {', '.join(others)}" if others else ""
        return f"speed: {settings} (measured {self.day}{compared})"


def speed_candidates(task: type[Task], device: torch.device, num_processes: int = 1) -> dict[str, list[Any]]:
    """The settings to try, each with its values, the likeliest first.

    Args:
        task: The task's class.
        device: Where it will be trained.
        num_processes: Of the run; among several, Lightning divides the cores.
    """
    half = ["bf16-mixed"] if has_native_bf16(device) else ["16-mixed"] if device.type == "cuda" else []
    candidates: dict[str, list[Any]] = {"trainer.precision": [*half, "32-true"]}
    candidates |= {f"model.init_args.{name}": list(values) for name, values in task.speed_settings.items()}
    if device.type == "cpu" and num_processes == 1 and not threads_are_chosen():
        # two threads of one core may be slower than one, and a container may grant less than the cores that it shows
        default = torch.get_num_threads()
        candidates["threads"] = list(dict.fromkeys([default, num_cores(), max(1, default // 2)]))
    if device.type == "cuda":
        # cuDNN tries its algorithms for each shape, and keeps the quickest
        candidates["trainer.benchmark"] = [False, True]
        candidates["model.init_args.compile"] = [False, True]
    return candidates


def fastest(candidates: dict[str, list[Any]], measure: Callable[[Settings], float]) -> Choice:
    """Tries the values of each setting in turn and keeps the best.

    What fails (too little memory, a compiler that is not there) is not the best; only the first trial has to succeed.

    Args:
        candidates: For each setting its values; the first is where the search begins.
        measure: Seconds for a batch with given settings.
    """
    settings = {key: values[0] for key, values in candidates.items()}
    best = measure(settings)
    trials = [Trial(dict(settings), best)]
    for key, values in candidates.items():
        for value in values[1:]:
            tried = {**settings, key: value}
            try:
                seconds = measure(tried)
            except RuntimeError:
                seconds = math.inf
            trials.append(Trial(tried, seconds))
            if seconds * _LEAST_GAIN < best:
                settings, best = tried, seconds
    return Choice(settings, trials, date.today().isoformat())


def measure_batch(task: Task, data: LightningDataModule, arguments: dict[str, Any], seconds: float = 1.0) -> float:
    """Seconds for a training batch, the same on every process.

    Args:
        task: Trained and thrown away.
        data: The images, set up.
        arguments: Of Lightning's Trainer.
        seconds: For how long batches are measured, at least; three at the fewest, after two to warm up.
    """
    stopwatch = Stopwatch(seconds, warm_up=2, fewest=3)
    trainer = trial_trainer(arguments, stopwatch)
    batch_size = getattr(data, "batch_size", None)
    if batch_size is not None and trainer.strategy.root_device.type == "cpu":
        vars(data)["batch_size"] = min(batch_size, _MOST_IMAGES_ON_CPU)
    try:
        trainer.fit(task, datamodule=data)
    finally:
        if batch_size is not None:
            vars(data)["batch_size"] = batch_size
    return from_rank_zero(stopwatch.training)


class KeptChoices:
    """The choices of this machine, in a file of the cache's folder.

    Args:
        path: The file.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or default_cache_dir() / "speed.json"

    def find(self, what: dict[str, Any], candidates: dict[str, list[Any]]) -> Choice | None:
        """What was measured for this; None for nothing, and where the file cannot be read.

        Args:
            what: Describes what was measured, as plain data.
            candidates: The settings in question.
        """
        try:
            settings, trials, day = self._all()[_key(what, candidates)]
            return Choice(settings, [Trial(*trial) for trial in trials], day)
        except (KeyError, OSError, TypeError, ValueError, RecursionError):
            return None

    def keep(self, what: dict[str, Any], candidates: dict[str, list[Any]], choice: Choice) -> None:
        """Notes a choice; without a folder to write to, nothing happens."""
        try:
            kept = self._all()
        except (OSError, ValueError, RecursionError):
            kept = {}
        try:
            write_atomically(self.path, json.dumps({**kept, _key(what, candidates): choice}, indent=1))
        except OSError:
            return

    def _all(self) -> dict[str, Any]:
        kept = json.loads(self.path.read_text(encoding="utf-8"))
        if not isinstance(kept, dict):
            raise ValueError(f"{self.path} does not hold choices")
        return kept


def machine(trainer: Trainer) -> str:
    """What a measurement depends on beside the task: the devices, the cores, the versions."""
    device = trainer.strategy.root_device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} {device.type}"
    return f"{name} x {trainer.world_size}, {num_cores()} cores, {platform.node()}, torch {torch.__version__}"


def _key(what: dict[str, Any], candidates: dict[str, list[Any]]) -> str:
    text = json.dumps([what, candidates], sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _short(key: str) -> str:
    return key.rpartition(".")[2]


def _difference(settings: Settings, reference: Settings) -> str:
    return ", ".join(f"{_short(key)} {value}" for key, value in settings.items() if reference[key] != value)
