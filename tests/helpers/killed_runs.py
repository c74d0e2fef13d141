"""What children of `fork_server.ForkServer` do: train until they kill themselves, and save without end."""

from __future__ import annotations

import itertools
import json
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from run_comparison import batches_noted
from ssl_toolkit.callbacks.checkpoint import Checkpoint
from ssl_toolkit.checkpoint.io import AtomicCheckpointIO
from ssl_toolkit.cli.train import train
from ssl_toolkit.run_folder import newest_checkpoint, remove_leftovers
from ssl_toolkit.task import Task

MOMENTS = ("before", "loss", "gradient", "optimizer", "saving", "any")
# what happens when a checkpoint is saved: the flush and the renaming of the checksum, of the checkpoint, of the folder
_EVENTS_OF_A_SAVE = 5
_SECONDS = 0.04


class Kill(NamedTuple):
    """When a child kills itself.

    Attributes:
        step: In this optimizer step (counted from 0) or, if it saves only later, soon after.
        moment: Before the step; when its loss, its gradient, or the weights after it are known; during the next save;
            or whenever a thread says so.
        fraction: In [0, 1): where in a saving, or after which part of about two steps' time.
    """

    step: int
    moment: str
    fraction: float


def kill_oneself() -> None:
    """As ``kill -9`` does: nothing is cleaned up."""
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)  # the signal is on its way


def train_until_killed(command: str, arguments: list[str], notes: str, kill: list[Any] | None) -> None:
    """Runs the command line.

    Args:
        command: ``pretrain`` or ``transfer``.
        arguments: The command line after it.
        notes: A file to which each training batch is added, whatever happens then.
        kill: A `Kill`; None to train to the end.
    """
    torch.set_num_threads(1)
    file = os.open(notes, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    if kill is not None:
        _prepare(Kill(*kill))
    with batches_noted(lambda batch: os.write(file, json.dumps(batch).encode() + b"\n")):
        train(command, arguments, quietly=True)


def _prepare(kill: Kill) -> None:
    """Wraps what the training calls; the child has the changed classes for itself."""
    now = SimpleNamespace(is_time=False, events=0)

    def on_train_batch_start(self: Any, *arguments: Any) -> None:
        original(self, *arguments)
        if self.global_step < kill.step or now.is_time:
            return
        now.is_time = True
        if kill.moment == "before":
            kill_oneself()
        if kill.moment == "any":
            threading.Timer(kill.fraction * _SECONDS, kill_oneself).start()

    original, Task.on_train_batch_start = Task.on_train_batch_start, on_train_batch_start
    for moment, name in (
        ("loss", "training_step"),
        ("gradient", "on_after_backward"),
        ("optimizer", "optimizer_step"),
    ):
        if moment == kill.moment:
            setattr(Task, name, _then_kill(getattr(Task, name), lambda: now.is_time))

    def on_train_end(self: Any) -> None:
        kill_oneself()  # at the latest

    Task.on_train_end = on_train_end

    def is_due() -> bool:
        now.events += now.is_time
        return now.events > int(kill.fraction * _EVENTS_OF_A_SAVE)

    if kill.moment == "saving":
        os.fsync = _kill_or(os.fsync, is_due)
        Path.replace = _kill_or(Path.replace, is_due)


def _then_kill(function: Callable[..., Any], is_due: Callable[[], bool]) -> Callable[..., Any]:
    def wrapped(*arguments: Any, **named: Any) -> Any:
        result = function(*arguments, **named)
        if is_due():
            kill_oneself()
        return result

    return wrapped


def _kill_or(function: Callable[..., Any], is_due: Callable[[], bool]) -> Callable[..., Any]:
    def wrapped(*arguments: Any) -> Any:
        if is_due():
            kill_oneself()
        return function(*arguments)

    return wrapped


def save_without_end(run: str, temporary: str, num_floats: int, kill_at: int | None) -> None:
    """Saves step after step as a run does, going on after the newest whole checkpoint; each holds its step only.

    Args:
        run: The run's folder.
        temporary: The system's folder for temporary files.
        num_floats: Size of the checkpoints.
        kill_at: The process kills itself at this flush or renaming; None to leave it to others.
    """
    tempfile.tempdir = temporary
    remove_leftovers(Path(run))
    if kill_at is not None:
        events = itertools.count()
        os.fsync = _kill_or(os.fsync, lambda: next(events) == kill_at)
        Path.replace = _kill_or(Path.replace, lambda: next(events) == kill_at)
    newest = newest_checkpoint(Path(run))
    io, callback = AtomicCheckpointIO(), Checkpoint(every_n_steps=1, keep=2)
    trainer: Any = SimpleNamespace(
        default_root_dir=run, global_step=0, world_size=1, is_global_zero=True, is_last_batch=False, callbacks=[]
    )
    trainer.estimated_stepping_batches = float("inf")
    trainer.strategy = SimpleNamespace(checkpoint_io=io, broadcast=lambda value: value)
    trainer.save_checkpoint = lambda path: io.save_checkpoint(_content(trainer.global_step, num_floats), path)
    for step in itertools.count(1 if newest is None else int(newest.stem.split("-")[1]) + 1):
        trainer.global_step = step
        callback.on_train_batch_end(trainer, None, None, None, 0)  # pyright: ignore[reportArgumentType]


def save_without_end_as_lightning_does(file: str, temporary: str, num_floats: int) -> None:
    """Replaces one checkpoint again and again by Lightning's own means."""
    tempfile.tempdir = temporary
    io = TorchCheckpointIO()
    for step in itertools.count():
        io.save_checkpoint(_content(step, num_floats), file)


def _content(step: int, num_floats: int) -> dict[str, Any]:
    return {"step": step, "weights": torch.full((num_floats,), float(step))}
