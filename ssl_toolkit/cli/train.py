"""The verbs that train: ``pretrain`` and ``transfer``."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from ssl_toolkit.callbacks import ExportWeights, LearningRate, ProgressBar, ResumeMetrics, SampleViews, Throughput
from ssl_toolkit.checkpoint import AtomicCheckpointIO
from ssl_toolkit.cli.parser import instantiate, options, parse, plain, training_parser
from ssl_toolkit.random import number
from ssl_toolkit.report import write_report
from ssl_toolkit.run import (
    CONFIG,
    WEIGHTS,
    is_first_process,
    new_run,
    newest_checkpoint,
    open_run,
    write_config,
    write_environment,
)
from ssl_toolkit.tracking import make_loggers, sync_command


def pretrain(arguments: Sequence[str]) -> None:
    """Pretrains a backbone with a pretext task."""
    train("pretrain", arguments)


def transfer(arguments: Sequence[str]) -> None:
    """Trains a downstream task."""
    train("transfer", arguments)


def train(verb: str, arguments: Sequence[str], quietly: bool = False) -> Path:
    """Runs a training verb.

    Args:
        verb: ``pretrain`` or ``transfer``.
        arguments: The command line after the verb.
        quietly: Leave out the hints on what to do next.

    Returns:
        The run's folder.

    Raises:
        ValueError: For whatever the user can mend, in one line.
    """
    resumed = dict(options(arguments)).get("--resume")
    if resumed is not None:
        # the run's own configuration first, so that what the command line adds wins
        arguments = ["--config", str(open_run(resumed) / CONFIG), *arguments]
    parser = training_parser(verb, arguments)
    config = parse(parser, arguments)
    resolved = plain(parser, config)

    if resumed is None:
        task_name = config.model.class_path.rpartition(".")[2].lower()
        run, checkpoint = new_run(config.out, task_name), None
    else:
        run = open_run(resumed)
        checkpoint = newest_checkpoint(run)
        if checkpoint is None:
            print(f"{run} was stopped before its first checkpoint: it starts again from step 0")

    torch.manual_seed(number("model", config.seed))
    objects = instantiate(parser, config)
    objects.data.setup("fit")
    objects.data.train_dataloader()  # too few images for a batch are found before the folder becomes a run
    if is_first_process():
        write_config(run, resolved)
        write_environment(run)
        print(objects.data.summary())
    fit(objects, run, resolved, checkpoint, tested=verb == "transfer")
    if is_first_process():
        finish(objects, run)
        if not quietly:
            say_what_next(verb, run)
    return run


def fit(objects: Namespace, run: Path, resolved: dict[str, Any], checkpoint: Path | None, tested: bool) -> None:
    """Trains, in the run's folder.

    Args:
        objects: What the configuration describes: ``model``, ``data``, ``tracker``, ``checkpoint``, and perhaps
            ``evaluation``; ``trainer`` holds the arguments of Lightning's Trainer.
        run: The run's folder.
        resolved: The configuration as plain data.
        checkpoint: Where to go on; None to start.
        tested: Use the test split, once, at the end.
    """
    task, arguments = objects.model, vars(objects.trainer)
    task.resolved_config = resolved
    own = [ResumeMetrics(), Throughput(), LearningRate(), SampleViews(), ExportWeights(), ProgressBar()]
    own.append(objects.checkpoint)
    if "evaluation" in objects:
        own.append(objects.evaluation)
    pretraining = getattr(task, "pretraining", None)
    loggers = make_loggers(run, objects.tracker, config=resolved, pretraining=pretraining)
    users, plugins = arguments.pop("callbacks"), arguments.pop("plugins")
    with quiet():
        try:
            trainer = Trainer(
                **arguments,
                logger=loggers,
                callbacks=[*own, *_listed(users)],
                plugins=[AtomicCheckpointIO(), *_listed(plugins)],
                default_root_dir=run,
                enable_model_summary=False,
                use_distributed_sampler=False,
            )
            trainer.fit(task, datamodule=objects.data, ckpt_path=checkpoint, weights_only=True)
            if tested:
                trainer.test(task, datamodule=objects.data, verbose=False)
        except MisconfigurationException as error:
            raise ValueError(" ".join(str(error).split())) from None


def finish(objects: Namespace, run: Path) -> None:
    """Writes what a finished run leaves beside its weights: the list of bad files, and the page."""
    if bad := objects.data.bad_files:
        (run / "bad_files.txt").write_text("".join(f"{file.path}\t{file.reason}\n" for file in bad), encoding="utf-8")
        print(f"{len(bad)} unreadable files were left out, listed in {run / 'bad_files.txt'}")
    write_report(run)


def say_what_next(verb: str, run: Path) -> None:
    """Prints where things are, and what to do with them."""
    print(f"weights: {run / WEIGHTS}\nreport:  {run / 'report.html'}")
    if command := sync_command(run):
        print(f"W&B:     {command}")
    if verb == "pretrain":
        print(
            f"next:    ssl-toolkit evaluate --weights {run / WEIGHTS} --data.path LABELLED\n"
            f"         ssl-toolkit transfer -c configs/transfer/linear_probe.yaml --data.path LABELLED "
            f"--model.weights {run / WEIGHTS}"
        )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences what Lightning says of its own business and the user cannot act on."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning.*")
        yield
    logger.setLevel(level)


def _listed(given: Any) -> list[Any]:
    return [] if given is None else list(given) if isinstance(given, (list, tuple)) else [given]
