"""Preparation of a run from its configuration: errors are found before the folder becomes a run."""

from __future__ import annotations

from pathlib import Path

import torch
from jsonargparse import ArgumentParser, Namespace

from ssl_toolkit.cli.lost_files import keep_provenance
from ssl_toolkit.cli.parser import instantiate
from ssl_toolkit.cli.run_context import check_trainer
from ssl_toolkit.distributed.ranks import use_threads
from ssl_toolkit.random import number
from ssl_toolkit.runtime.fsdp import check_run
from ssl_toolkit.task import Task


def prepare(parser: ArgumentParser, config: Namespace, resumed: Path | None = None) -> Namespace:
    """Builds what a configuration describes, checks it, and sets up its data.

    Args:
        parser: Of the configuration.
        config: The configuration.
        resumed: The folder of a run that goes on, whose images stay in their splits.
    """
    use_threads(config.threads)
    torch.manual_seed(number("model", config.seed))
    objects = instantiate(parser, config)
    keep_provenance(objects.model, resumed)
    check_trainer(vars(objects.trainer))
    check_task(config, objects)
    objects.model.check_data(objects.data)
    objects.data.whole_batches = objects.model.whole_batches
    objects.data.range_from(getattr(objects.model, "pretraining", None))
    if resumed is not None:
        objects.data.go_on_with(resumed)
    objects.data.setup("fit")
    objects.early_stopping.check(objects.data)
    return objects


def check_task(config: Namespace, objects: Namespace) -> None:
    """Raises a ValueError for a task that cannot be trained in this way."""
    objects.model.check()
    check_run(objects, config.get("budget"), config.get("speed"))
    objects.average.check(objects.model)
    if "progressive" in objects:
        objects.progressive.check(objects.model)


def rebuild_task(parser: ArgumentParser, config: Namespace, objects: Namespace) -> None:
    """Builds the task again, as `prepare` does; everything else stays."""
    use_threads(config.threads)
    objects.model = build_task(parser, config)
    check_task(config, objects)


def build_task(parser: ArgumentParser, config: Namespace) -> Task:
    """The task of a configuration, the same at each call."""
    torch.manual_seed(number("model", config.seed))
    return instantiate(parser, Namespace(model=config.model)).model
