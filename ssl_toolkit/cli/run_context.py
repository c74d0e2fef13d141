"""Context managers around a training: log filters, one-line errors, and the record of its start and end."""

from __future__ import annotations

import contextlib
import logging
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import StrategyRegistry
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from ssl_toolkit.distributed.ranks import is_rank_zero, rank
from ssl_toolkit.errors import INTERRUPTED, is_interrupt, nearest
from ssl_toolkit.run_folder import (
    CONFIG,
    remove_leftovers,
    write_bad_files,
    write_config,
    write_environment,
    write_status,
)
from ssl_toolkit.runtime.fsdp import NAME as SHARDED
from ssl_toolkit.runtime.preemption import EXIT_STATUS
from ssl_toolkit.runtime.rank_failure import RankFailed


class Record(Callback):
    """Record of a start: its configuration, command and environment.

    Of a resumed one it does so once all of the checkpoint is loaded: a start that cannot work leaves the run as it was.

    Args:
        run: The run's folder.
        resolved: The configuration as plain data.
        data: The images, whose splits are written down.

    Attributes:
        facts: Plain data about this start, to be written with it.
        is_written: Whether it was.
    """

    def __init__(self, run: Path, resolved: dict[str, Any], data: Any) -> None:
        self.run = run
        self.resolved = resolved
        self.data = data
        self.facts: dict[str, Any] = {}
        self.is_written = False

    def write(self) -> None:
        """Writes it, once."""
        if not self.is_written and is_rank_zero():
            if (self.run / CONFIG).exists():  # else the folder may hold files of the user's
                remove_leftovers(self.run)
            write_config(self.run, self.resolved)
            self.data.write_splits(self.run)
            write_environment(self.run, **self.facts)
            write_status(self.run, "running")
        self.is_written = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes it."""
        self.write()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences messages of Lightning that the user cannot act on."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning.*")
        try:
            yield
        finally:
            logger.setLevel(level)


@contextlib.contextmanager
def one_line_errors(checkpoint: Path | None = None) -> Iterator[None]:
    """Turns Lightning's errors about wrong settings into one-line errors.

    Args:
        checkpoint: What is resumed.
    """
    try:
        yield
    except MisconfigurationException as error:
        of = f"{checkpoint}: " if checkpoint and "restored a checkpoint" in str(error) else ""
        raise ValueError(of + " ".join(str(error).split())) from None
    except RuntimeError as error:
        if "loading state_dict" not in str(error):
            raise
        first = re.search(r"\w+\.[\w.]+", str(error).partition(":")[2])
        where = f"; the first tensor that does not fit is {first[0]}" if first else ""
        raise ValueError(
            f"{checkpoint or 'the checkpoint'} is of another network than the configuration asks for{where}"
        ) from None


def check_trainer(arguments: dict[str, Any]) -> None:
    """Checks the Trainer's arguments before images are read.

    Args:
        arguments: Of the Trainer; only plain data are looked at.

    Raises:
        ValueError: In one line.
    """
    strategy, known = arguments["strategy"], ["auto", *StrategyRegistry.available_strategies()]
    if isinstance(strategy, str) and strategy not in known:
        raise ValueError(
            f"trainer.strategy is {strategy!r}, expected auto, ddp or {SHARDED}"
            f"{nearest(strategy, ('auto', 'ddp', SHARDED))}"
        )
    if (arguments["gradient_clip_val"] or 0) < 0:
        raise ValueError(f"trainer.gradient_clip_val must be above 0, got {arguments['gradient_clip_val']}")
    for name in ("accumulate_grad_batches", "check_val_every_n_epoch", "num_nodes"):
        if arguments[name] is not None and arguments[name] < 1:
            raise ValueError(f"trainer.{name} must be at least 1, got {arguments[name]}")
    plain: dict[str, Any] = {
        name: each for name, each in arguments.items() if isinstance(each, str | int | float | None)
    }
    plain |= {"devices": arguments["devices"], "logger": False}
    plain |= {"enable_checkpointing": False, "enable_progress_bar": False}
    try:
        with quiet(), one_line_errors():
            Trainer(**plain)
    except TypeError as error:
        raise ValueError(f"trainer: {' '.join(str(error).split())}") from None


@contextlib.contextmanager
def failure_noted(record: Record, trainer: Trainer) -> Iterator[None]:
    """Writes into the run's status why it failed, if it had begun."""
    try:
        yield
    except BaseException as error:
        is_exit = isinstance(error, SystemExit)
        known = (is_exit and error.code in (EXIT_STATUS, INTERRUPTED)) or (
            isinstance(error, RankFailed) and error.is_noted
        )
        if record.is_written and is_interrupt(error):
            with contextlib.suppress(OSError):
                write_status(record.run, "preempted", step=trainer.global_step, reason="SIGINT")
        elif record.is_written and not known:
            reason = f"exit status {error.code}" if is_exit else str(error).strip() or type(error).__name__
            failed = error.rank if isinstance(error, RankFailed) else rank()
            facts = {"rank": failed} if trainer.world_size > 1 and failed is not None else {}
            with contextlib.suppress(OSError):  # the disk may be what failed
                write_status(record.run, "failed", step=trainer.global_step, reason=reason, **facts)
        raise


@contextlib.contextmanager
def bad_files_noted(record: Record, data: Any) -> Iterator[None]:
    """Lists the images that could not be decoded in the run's folder, however the training ends."""
    try:
        yield
    finally:
        if record.is_written and is_rank_zero():
            with contextlib.suppress(OSError):  # the disk may be what failed
                write_bad_files(record.run, ((each.path, each.reason) for each in data.bad_files))
