"""The verbs that train: ``pretrain`` and ``transfer``."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch import Trainer

from ssl_toolkit.callbacks import ExportWeights, LearningRate, ProgressBar, ResumeMetrics, SampleViews, Throughput
from ssl_toolkit.checkpoint.io import AtomicCheckpointIO
from ssl_toolkit.cli.autotune_trials import fastest_settings, steps_within
from ssl_toolkit.cli.global_batch import batch_facts, keep_global_batch
from ssl_toolkit.cli.leftover_args import inherited_remarks
from ssl_toolkit.cli.parser import instantiate, options, parse, plain
from ssl_toolkit.cli.run_context import Record, bad_files_noted, check_trainer, failure_noted, one_line_errors, quiet
from ssl_toolkit.cli.training_parser import training_parser
from ssl_toolkit.data.checks import rest_of_epoch
from ssl_toolkit.distributed.ranks import is_first_process, use_threads
from ssl_toolkit.io.credentials import check_no_password
from ssl_toolkit.optim import large_batch_remark
from ssl_toolkit.random import number
from ssl_toolkit.report import write_report
from ssl_toolkit.run_folder import (
    BAD_FILES,
    CONFIG,
    WEIGHTS,
    new_run,
    newest_checkpoint,
    open_run,
    sync_command,
    write_bad_files,
    write_status,
)
from ssl_toolkit.runtime.fsdp import NAME as SHARDED
from ssl_toolkit.runtime.fsdp import check_run
from ssl_toolkit.runtime.preemption import is_restarted, restart_remarks
from ssl_toolkit.runtime.rank_failure import introduce, stand_together
from ssl_toolkit.tracking.loggers import make_loggers
from ssl_toolkit.tuning.time_budget import to_seconds


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
    started = time.monotonic()
    introduce()
    given = dict(options(arguments))
    resumed, out = given.get("--resume"), given.get("--out")
    if resumed is None and out is not None and is_restarted() and (Path(out) / CONFIG).is_file():
        # the same command again, which this time has something to go on with
        resumed, arguments = out, []
    if resumed is not None:
        # the run's own configuration first, so that what the command line adds wins
        arguments = ["--config", str(open_run(resumed) / CONFIG), *arguments]
    parser = training_parser(verb, arguments)
    config = parse(parser, arguments)
    check_no_password(config.as_dict())
    for option in ("budget", "speed"):
        if config[option] is not None and resumed is not None:
            raise ValueError(f"--{option} is for a new run: a resumed one goes on as it began")
    seconds = None if config.budget is None else to_seconds(config.budget)

    if resumed is None:
        task_name = config.model.class_path.rpartition(".")[2].lower()
        run, checkpoint = new_run(config.out, task_name), None
    else:
        run = open_run(resumed)
        checkpoint = newest_checkpoint(run)
        if checkpoint is None:
            print(f"{run} was stopped before its first checkpoint: it starts again from step 0")

    objects = prepare(parser, config)
    if is_first_process():
        for line in (*inherited_remarks(arguments, objects), *restart_remarks()):
            print(line)
    if config.speed == "auto":
        with quiet(), one_line_errors():
            config.update(fastest_settings(parser, config, objects, arguments))
        objects = prepare(parser, config)
    if seconds is not None:
        with quiet(), one_line_errors():
            steps = steps_within(seconds, objects, started)
        config.trainer.max_steps, config.trainer.max_epochs = steps, -1
        objects = prepare(parser, config)
    resolved = plain(parser, config)
    with quiet(), one_line_errors():
        record = Record(run, resolved)
        trainer = make_trainer(objects, record)
        if resumed is not None:
            is_given = "--data.batch_size" in dict(options(arguments))
            keep_global_batch(objects.data, trainer.world_size, run, resolved, is_given)
        record.facts = batch_facts(objects.data, trainer.world_size)
        settle_lr(objects, trainer, resolved)
        if is_first_process():
            print(objects.data.summary())
            if line := left_out(objects.data, trainer):
                print(line)
        if resumed is None:
            record.write()
        objects.model.resolved_config = resolved
        together = stand_together(run, trainer, objects.checkpoint.preemption)
        with failure_noted(record, trainer), bad_files_noted(record, objects.data), together:
            trainer.fit(objects.model, datamodule=objects.data, ckpt_path=checkpoint, weights_only=True)
            if verb == "transfer" and objects.data.num_images("test"):
                trainer.test(objects.model, datamodule=objects.data, verbose=False)
    if is_first_process():
        finish(objects, run)
        write_status(run, "finished", step=trainer.global_step)
        if not quietly:
            say_what_next(verb, run, trainer)
    return run


def prepare(parser: ArgumentParser, config: Namespace) -> Namespace:
    """Builds what a configuration describes; what cannot work is found before the folder becomes a run."""
    use_threads(config.threads)
    torch.manual_seed(number("model", config.seed))
    objects = instantiate(parser, config)
    check_trainer(vars(objects.trainer))
    objects.model.check()
    check_run(objects, config.get("budget"), config.get("speed"))
    if "progressive" in objects:
        objects.progressive.check(objects.model)
    objects.data.setup("fit")
    objects.early_stopping.check(objects.data)
    arguments, batches = objects.trainer, len(objects.data.train_dataloader())
    # a short run has curves, too: a point in each epoch at least
    steps = max(1, batches // arguments.accumulate_grad_batches)
    steps = min(steps, arguments.max_steps) if arguments.max_steps > 0 else steps
    arguments.log_every_n_steps = min(arguments.log_every_n_steps, steps)
    return objects


def make_trainer(objects: Namespace, record: Record) -> Trainer:
    """Lightning's Trainer for a run in a folder.

    Args:
        objects: What the configuration describes: ``model``, ``tracker``, ``checkpoint``, ``nonfinite``, ``watch``,
            ``average``, ``early_stopping``, and for a pretraining ``evaluation`` and ``progressive``; ``trainer`` holds
            the arguments of Lightning's Trainer.
        record: Of the run.
    """
    arguments = vars(objects.trainer)
    own = [record, ResumeMetrics(), Throughput(), LearningRate(), SampleViews(), ProgressBar()]
    own += [objects.nonfinite, objects.checkpoint, objects.watch]
    own += [objects[name] for name in ("evaluation", "progressive") if name in objects]
    # early stopping looks at what the evaluation measures, and goes back to the best weights before the last export
    own += [objects.average, objects.early_stopping, ExportWeights()]
    pretraining = getattr(objects.model, "pretraining", None)
    users, plugins = arguments.pop("callbacks"), arguments.pop("plugins")
    if arguments["strategy"] == SHARDED:
        # what is gathered in inference mode could not be trained with later
        arguments["inference_mode"] = False
    return Trainer(
        **arguments,
        logger=make_loggers(record.run, objects.tracker, config=record.resolved, pretraining=pretraining),
        callbacks=[*own, *_listed(users)],
        plugins=[AtomicCheckpointIO(), *_listed(plugins)],
        default_root_dir=record.run,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )


def settle_lr(objects: Namespace, trainer: Trainer, resolved: dict[str, Any]) -> None:
    """Scales the learning rate to the batch of a step, says so, and writes it into the resolved configuration.

    Args:
        objects: What the configuration describes.
        trainer: Of the run.
        resolved: The configuration as plain data; its rate becomes the one in use, which needs no scaling.
    """
    task, num, accumulated = objects.model, trainer.world_size, trainer.accumulate_grad_batches
    batch_size = objects.data.batch_size * num * accumulated
    lines = [large_batch_remark(task.optimizer_spec, batch_size)]
    if (scaling := task.lr_scaling) != "none":
        before, reference = task.optimizer_spec.lr, task.reference_batch_size
        lr = task.settle_lr(batch_size)
        arguments = resolved["model"]["init_args"]
        arguments["optimizer"]["init_args"]["lr"], arguments["lr_scaling"] = lr, "none"
        lines.append(
            f"lr {lr:.6g}: {before:.6g} for {reference:,} images, {scaling} to {batch_size:,} (batches of "
            f"{objects.data.batch_size:,}, {num} process{'es' if num > 1 else ''}, {accumulated} accumulated)"
        )
    if is_first_process():
        for line in filter(None, lines):
            print(line)


def left_out(data: Any, trainer: Trainer) -> str | None:
    """What is to be said of images that do not fill a batch; None if there are none, or fewer batches are wanted."""
    if trainer.limit_train_batches != 1.0:
        return None
    return rest_of_epoch(data.num_images("train"), data.batch_size * trainer.world_size, data.noun)


def finish(objects: Namespace, run: Path) -> None:
    """Says how many files were bad, and writes the page."""
    if num_bad := write_bad_files(run, []):
        print(f"unreadable files left out: {num_bad}, listed in {run / BAD_FILES}")
    write_report(run)


def say_what_next(verb: str, run: Path, trainer: Trainer) -> None:
    """Prints what came out, where things are, and what to do with them."""
    for key in ("test/top1", "test/mean_class_top1"):
        if key in trainer.callback_metrics:
            print(f"{key}: {100 * float(trainer.callback_metrics[key]):.1f} %")
    print(f"weights: {run / WEIGHTS}\nreport:  {run / 'report.html'}")
    if command := sync_command(run):
        print(f"W&B:     {command}")
    if verb == "pretrain":
        print(
            f"next:    ssl-toolkit evaluate --weights {run / WEIGHTS} --data.path LABELLED\n"
            f"         ssl-toolkit transfer -c configs/transfer/linear_probe.yaml --data.path LABELLED "
            f"--model.weights {run / WEIGHTS}"
        )


def _listed(given: Any) -> list[Any]:
    return [] if given is None else list(given) if isinstance(given, (list, tuple)) else [given]
