"""Autotune trials before a run: the fastest settings, and the number of steps that fit a budget."""

from __future__ import annotations

import contextlib
import io
import time
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from ssl_toolkit.cli.parser import plain
from ssl_toolkit.cli.prepare import build_task
from ssl_toolkit.distributed.ranks import from_rank_zero, is_rank_zero, use_threads
from ssl_toolkit.errors import counted
from ssl_toolkit.tuning.autotune import KeptChoices, fastest, machine, measure_batch, speed_candidates
from ssl_toolkit.tuning.time_budget import Stopwatch, measure, trial_trainer


def fastest_settings(parser: ArgumentParser, config: Namespace, objects: Namespace, fixed: set[str]) -> dict[str, Any]:
    """The settings that a trial finds fastest, or found when it was last made, which it says.

    Args:
        parser: Builds a task for each trial.
        config: Of the run.
        objects: What it describes; the task itself is not used.
        fixed: Keys that the user has set, which are not tried.

    Returns:
        Values by their keys in the configuration.
    """
    trainer = trial_trainer(vars(objects.trainer), Stopwatch(0))
    candidates = speed_candidates(type(objects.model), trainer.strategy.root_device, trainer.world_size)
    candidates = {key: each for key, each in candidates.items() if key.replace(".init_args", "") not in fixed}
    if not candidates:
        return {}
    described = plain(parser, config)
    sizes = {name: described["data"].get(name) for name in ("batch_size", "image_size", "channels")}
    described = {"machine": machine(trainer), "model": described["model"], "data": sizes}

    def seconds_for_a_batch(settings: dict[str, Any]) -> float:
        tried = config.clone()
        tried.update(Namespace(settings))
        use_threads(tried.threads)
        with contextlib.redirect_stdout(io.StringIO()):
            task = build_task(parser, tried)
        of_trainer = {
            key.removeprefix("trainer."): each for key, each in settings.items() if key.startswith("trainer.")
        }
        return measure_batch(task, objects.data, {**vars(objects.trainer), **of_trainer})

    kept = KeptChoices()
    # several processes have to measure together, whatever each may have found in its own folder
    choice = kept.find(described, candidates) if trainer.world_size == 1 else None
    if choice is None:
        choice = fastest(candidates, seconds_for_a_batch)
        if is_rank_zero():
            kept.keep(described, candidates, choice)
    if is_rank_zero():
        print(choice)
    return choice.settings


def steps_within(seconds: float, objects: Namespace, started: float) -> int:
    """The number of steps for what is left of a budget after the preparations and a trial, which it says."""
    evaluation, progressive = (getattr(objects, name, None) for name in ("evaluation", "progressive"))
    costs = measure(objects.model, objects.data, vars(objects.trainer), evaluation, progressive)
    costs, left = from_rank_zero((costs, seconds - (time.monotonic() - started)))
    steps = costs.steps_within(left)
    if is_rank_zero():
        print(
            f"budget: {seconds / 60:.3g} minutes are {counted(steps, 'steps')}, "
            f"{steps / costs.steps_per_epoch:.3g} epochs (a "
            f"step takes {costs.step:.2g} s, validation {costs.validation:.2g} s, evaluation {costs.evaluation:.2g} s)"
        )
    return steps
