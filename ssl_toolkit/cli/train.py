"""The commands that train: ``pretrain`` and ``transfer``."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch import Trainer

from ssl_toolkit.augment.presets import write_out
from ssl_toolkit.callbacks import ExportWeights, LearningRate, ProgressBar, ResumeMetrics, SampleViews, Throughput
from ssl_toolkit.checkpoint import AtomicCheckpointIO
from ssl_toolkit.cli.autotune_trials import fastest_settings, steps_within
from ssl_toolkit.cli.command_line import CommandLine
from ssl_toolkit.cli.folds import run_folds
from ssl_toolkit.cli.from_python import run_command, starts_processes, variables_restored
from ssl_toolkit.cli.global_batch import batch_facts, keep_global_batch
from ssl_toolkit.cli.leftover_args import leftover_remarks
from ssl_toolkit.cli.lost_files import without_lost_files
from ssl_toolkit.cli.parser import parse, plain
from ssl_toolkit.cli.prepare import prepare, rebuild_task
from ssl_toolkit.cli.random_head import check_asked, compare_with_random
from ssl_toolkit.cli.remarks import left_out, precision_remarks, say_what_next, seen_remarks, warmup_remarks
from ssl_toolkit.cli.resume_changes import changed_settings, check_kept, remarks
from ssl_toolkit.cli.run_context import Record, bad_files_noted, failure_noted, one_line_errors, quiet
from ssl_toolkit.cli.training_parser import training_parser
from ssl_toolkit.distributed.ranks import is_rank_zero
from ssl_toolkit.errors import counted
from ssl_toolkit.io.credentials import check_no_password
from ssl_toolkit.optim import large_batch_remark
from ssl_toolkit.report import write_report
from ssl_toolkit.run_folder import (
    BAD_FILES,
    new_run,
    newest_checkpoint,
    read_config,
    read_starts,
    step_of,
    write_bad_files,
    write_status,
)
from ssl_toolkit.runtime.fsdp import NAME as SHARDED
from ssl_toolkit.runtime.preemption import restart_remarks
from ssl_toolkit.runtime.rank_failure import announce_rank_zero, end_on_rank_failure
from ssl_toolkit.runtime.run_lock import held
from ssl_toolkit.tracking import make_loggers
from ssl_toolkit.tracking.metrics_csv import last_values
from ssl_toolkit.tuning.time_budget import to_seconds
from ssl_toolkit.weights.trained_size import size_remark


def pretrain(arguments: Sequence[str]) -> None:
    """Pretrains a backbone with a pretext task."""
    train("pretrain", arguments)


def transfer(arguments: Sequence[str]) -> None:
    """Trains a downstream task."""
    train("transfer", arguments)


@variables_restored()
def train(command: str, arguments: Sequence[str], quietly: bool = False, apart: bool = False) -> Path:
    """Runs a training command.

    Args:
        command: ``pretrain`` or ``transfer``.
        arguments: The command line after it.
        quietly: Leave out the hints on what to do next.
        apart: Run the command line in a process of its own where Lightning would start more processes of this one.

    Returns:
        The run's folder.

    Raises:
        ValueError: For whatever the user can mend, in one line.
    """
    started = time.monotonic()
    announce_rank_zero()
    line = CommandLine(command, arguments)
    parser = training_parser(line)
    config = parse(parser, line.arguments)
    check_no_password(config.as_dict())
    if config.get("folds") is not None:
        each = partial(train, command, quietly=True, apart=True)
        return run_folds(line, arguments, config, plain(parser, config), each)
    run, checkpoint = find_run(line, config)
    if checkpoint is not None:
        check_kept(changed_settings(read_config(run), write_out(plain(parser, config))))
    if apart and starts_processes(config.trainer):
        run_command(command, arguments)
        return run
    with held(run, is_new=line.resumed is None):
        _train(line, parser, config, run, checkpoint, started, quietly)
    return run


def _train(
    line: CommandLine,
    parser: ArgumentParser,
    config: Namespace,
    run: Path,
    checkpoint: Path | None,
    started: float,
    quietly: bool,
) -> None:
    """Runs a training command in its folder, which is held."""
    built = config if checkpoint is None else without_lost_files(config, run)
    objects = prepare(parser, built, run if checkpoint is not None else None)
    if getattr(objects.model, "trains_nothing", False):
        if config.budget is not None or config.speed is not None:
            raise ValueError("--budget and --speed are for a training, but this head has nothing to train")
        objects.trainer.max_epochs, objects.trainer.max_steps = 0, -1
    if line.command == "transfer":
        check_asked(config.random_weights, objects, config.trainer)
    if is_rank_zero():
        for remark in (*leftover_remarks(line, objects.model), *restart_remarks(), *precision_remarks(objects.trainer)):
            print(remark)
    tune(line, parser, config, objects, started)
    trainer, record = start(line, parser, config, objects, run, checkpoint)
    earlier, begun, done = last_values(run), time.monotonic(), 0 if checkpoint is None else step_of(checkpoint)
    fit(line.command, trainer, record, objects, checkpoint)
    if is_rank_zero():
        finish(objects, run)
        write_status(run, "finished", step=trainer.global_step)
    compared = {}
    if line.command == "transfer":
        # of a run that was resumed, this start knows the time of its own steps
        seconds = time.monotonic() - begun
        if not getattr(objects.model, "trains_nothing", False):
            seconds *= trainer.global_step / (trainer.global_step - done) if trainer.global_step > done else 0.0
        compared = compare_with_random(parser, built, objects, trainer, seconds, earlier)
    if is_rank_zero():
        if compared:
            write_report(run)
        if not quietly:
            figures = {**trainer.callback_metrics, **compared}
            say_what_next(line.command, run, figures, objects.data.num_images("test"))


def find_run(line: CommandLine, config: Namespace) -> tuple[Path, Path | None]:
    """The run's folder, and the checkpoint with which it goes on; None for a run that begins."""
    for option in ("budget", "speed"):
        if config[option] is not None and line.resumed is not None:
            raise ValueError(f"--{option} is for a new run: a resumed one goes on as it began")
    if line.resumed is None:
        return new_run(config.out, config.model.class_path.rpartition(".")[2].lower()), None
    checkpoint = newest_checkpoint(line.resumed)
    if checkpoint is None:
        print(f"{line.resumed} was stopped before its first checkpoint: it starts again from step 0")
    return line.resumed, checkpoint


def tune(line: CommandLine, parser: ArgumentParser, config: Namespace, objects: Namespace, started: float) -> None:
    """Settles the fastest settings and the number of steps by trials, if they are asked for.

    The data stay as they are; the task is built again where it was trained in a trial, or where its settings changed.

    Args:
        line: The command line: what it settles is not tried.
        parser: Of the configuration.
        config: Of the run; what was found goes into it.
        objects: What it describes; likewise.
        started: When the command began, on the monotonic clock: the budget is for all of it.
    """
    seconds = None if config.budget is None else to_seconds(config.budget)
    if config.speed == "auto":
        with quiet(), one_line_errors():
            found = fastest_settings(parser, config, objects, line.set_by_options)
        for key, value in found.items():
            config[key] = value
            if key.startswith("trainer."):
                objects[key] = value
        rebuild_task(parser, config, objects)
    if seconds is not None:
        with quiet(), one_line_errors():
            steps = steps_within(seconds, objects, started)
        for arguments in (config.trainer, objects.trainer):
            arguments.max_steps, arguments.max_epochs = steps, -1
        rebuild_task(parser, config, objects)


def start(
    line: CommandLine,
    parser: ArgumentParser,
    config: Namespace,
    objects: Namespace,
    run: Path,
    checkpoint: Path | None,
) -> tuple[Trainer, Record]:
    """Makes the trainer, settles what depends on the number of processes, and says what is about to be trained."""
    with quiet(), one_line_errors():
        resolved = write_out(plain(parser, config))
        record = Record(run, resolved, objects.data)
        trainer = make_trainer(objects, record)
        if line.resumed is not None:
            is_given = "data.batch_size" in line.set_by_options
            keep_global_batch(objects.data, trainer.world_size, run, resolved, is_given)
        objects.model.check_batch(objects.data.batch_size * trainer.world_size)
        record.facts = batch_facts(objects.data, trainer.world_size)
        if objects.data.not_read:
            record.facts["not_read"] = objects.data.not_read
        if objects.data.ranges:
            # so that a resumed run, and what is done with the weights, sees the same numbers as black and white
            resolved["data"]["range"] = objects.data.ranges
        said = [*settle_lr(objects, trainer, resolved), *warmup_remarks(objects)]
        if checkpoint is not None:
            said += note_changes(record, objects.model, checkpoint)
        elif weights := getattr(objects.model, "pretraining", None):
            said.append(size_remark(weights["weights"], objects.data.image_size))
            said += seen_remarks(objects.data, weights["weights"])
        if is_rank_zero():
            for remark in (*said, objects.data.summary(), left_out(objects.data, trainer)):
                if remark:
                    print(remark)
        if line.resumed is None:
            record.write()
        objects.model.resolved_config = resolved
    return trainer, record


def note_changes(record: Record, task: Any, checkpoint: Path) -> list[str]:
    """Has the settings that change at a resume written down by their step; returns what is to be said of them."""
    step, changed = step_of(checkpoint), changed_settings(read_config(record.run), record.resolved)
    record.facts |= {"step": step, "changed": {key: list(values) for key, values in changed.items()}}
    history = [*read_starts(record.run), record.facts]
    task.setting_changes = [
        {name: each[name] for name in ("step", "changed")} for each in history if each.get("changed")
    ]
    return list(remarks(changed, step))


def fit(command: str, trainer: Trainer, record: Record, objects: Namespace, checkpoint: Path | None) -> None:
    """Trains, and tests a downstream task; whatever ends it stands in the run's folder."""
    together = end_on_rank_failure(record.run, trainer, objects.checkpoint.preemption)
    noted = failure_noted(record, trainer), bad_files_noted(record, objects.data)
    with quiet(), one_line_errors(checkpoint), noted[0], noted[1], together:
        trainer.fit(objects.model, datamodule=objects.data, ckpt_path=checkpoint, weights_only=True)
        if command == "transfer" and objects.data.num_images("test"):
            trainer.test(objects.model, datamodule=objects.data, verbose=False)


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


def settle_lr(objects: Namespace, trainer: Trainer, resolved: dict[str, Any]) -> list[str]:
    """Writes the learning rate of the batch of a step into the resolved configuration.

    Args:
        objects: What the configuration describes.
        trainer: Of the run.
        resolved: The configuration as plain data; its rate becomes the one in use, which needs no scaling.

    Returns:
        What is to be said of it.
    """
    task, num, accumulated = objects.model, trainer.world_size, trainer.accumulate_grad_batches
    batch_size = objects.data.batch_size * num * accumulated
    remark = large_batch_remark(task.optimizer_spec, batch_size)
    lines = [] if remark is None else [remark]
    if task.lr_scaling != "none":
        before, lr = task.optimizer_spec.lr, task.learning_rate(batch_size)
        arguments = resolved["model"]["init_args"]
        arguments["optimizer"]["init_args"]["lr"], arguments["lr_scaling"] = lr, "none"
        lines.append(
            f"lr {lr:.6g}: {before:.6g} for {task.reference_batch_size:,} images, {task.lr_scaling} to {batch_size:,} "
            f"(batches of {objects.data.batch_size:,}, {counted(num, 'processes')}, "
            f"{accumulated} accumulated)"
        )
    return lines


def finish(objects: Namespace, run: Path) -> None:
    """Says how many files were bad, and writes the page."""
    if num_bad := write_bad_files(run, []):
        print(f"unreadable files left out: {num_bad}, listed in {run / BAD_FILES}")
    write_report(run)


def _listed(given: Any) -> list[Any]:
    return [] if given is None else list(given) if isinstance(given, (list, tuple)) else [given]
