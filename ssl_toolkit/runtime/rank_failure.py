"""Rank failure: when one rank fails, all ranks end soon and report which one failed first, and why.

A process writes its error to the run's status before it exits. The others meet a broken connection in their next
collective. That is only a consequence, so they report what the status says instead. A monitor thread ends ranks that
do not get there: busy elsewhere, or waiting in a library that does not notice the failure.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from lightning.pytorch import Trainer

from ssl_toolkit.distributed.ranks import place, rank
from ssl_toolkit.errors import CANNOT_WRITE, INTERRUPTED, RunFailed
from ssl_toolkit.run_folder import read_status, write_status
from ssl_toolkit.runtime.preemption import EXIT_STATUS, Preemption

# in seconds: between two looks of the monitor, for the process to end by itself, for the first error to be written
_EVERY, _GRACE, _PATIENCE = 2.0, 5.0, 3.0
_RANK_ZERO_PID = "SSL_TOOLKIT_RANK_ZERO_PID"
_IN_ORDER = (None, 0, EXIT_STATUS, INTERRUPTED, CANNOT_WRITE)
_OF_A_CONNECTION = re.compile(r"gloo|nccl|process ?group|TCPStore|pair closure", re.IGNORECASE)


class RankFailed(RunFailed):
    """Another rank has failed or cannot be reached any more.

    Attributes:
        is_noted: Whether the first error is in the run's status already.
        rank: The one that failed; None if that cannot be seen from here.
    """

    def __init__(self, message: str, is_noted: bool, rank: int | None) -> None:
        super().__init__(message)
        self.is_noted = is_noted
        self.rank = rank


class _Failure(NamedTuple):
    """What is known of another rank's failure; see `RankFailed`."""

    message: str
    is_noted: bool
    rank: int | None


def announce_rank_zero() -> None:
    """Tells the processes that Lightning is going to launch the process id of rank zero."""
    if _parent() is None:
        os.environ[_RANK_ZERO_PID] = str(os.getpid())


@contextlib.contextmanager
def end_on_rank_failure(run: Path, trainer: Trainer, preemption: Preemption) -> Iterator[None]:
    """Handling of rank failure in a training: when one rank fails, this one ends, too, and says why.

    Args:
        run: The run's folder, which all of them see.
        trainer: Of the run.
        preemption: Goes on noting signals after an error: a launcher that sees one process end signals the others to
            end, too, and they have yet to say why.

    Raises:
        RankFailed: For an error that is only a consequence of another rank's.
        RunFailed: If the training is ended from within as if it were complete.
    """
    if trainer.world_size == 1:
        yield
        return
    monitor = _RankMonitor(run)
    preemption.is_held = True
    try:
        yield
    except SystemExit as ended:
        if ended.code in (None, 0):
            raise RunFailed("something called exit in the middle of the training") from None
        raise
    except Exception as error:
        if not _is_of_the_connection(error):
            raise
        # Lightning has put back the handlers from before the training
        preemption.stop_listening()
        preemption.listen()
        raise monitor.explain(error) from error
    finally:
        monitor.end()
        preemption.is_held = False
        preemption.stop_listening()


class _RankMonitor:
    """A thread that monitors the other ranks, as far as they can be seen from here."""

    def __init__(self, run: Path) -> None:
        self._run = run
        self._before = read_status(run)
        self._parent = _parent()
        self._children: list[subprocess.Popen[Any]] = []
        self._over = threading.Event()
        threading.Thread(target=self._watch, name="rank-monitor", daemon=True).start()

    def end(self) -> None:
        """Ends the thread."""
        self._over.set()

    def explain(self, error: Exception) -> RankFailed:
        """The cause of a broken connection."""
        self._adopt_children()
        deadline = time.monotonic() + _PATIENCE
        while (found := self._failure()) is None and time.monotonic() < deadline:
            time.sleep(0.1)
        # gloo goes on with advice
        said = (str(error).strip() or type(error).__name__).splitlines()[0].partition(". ")[0]
        if found is None and re.search(r"timed? ?out", said, re.IGNORECASE):
            said = f"another process does not answer: it is stuck, or does not do the same as this one ({said})"
            found = _Failure(said, False, None)
        if found is None:
            said = f"another process is gone; what it or its launcher said last tells why ({said})"
            found = _Failure(said, False, None)
        return RankFailed(*found)

    def _watch(self) -> None:
        while not self._over.wait(_EVERY):
            self._adopt_children()
            found = self._failure()
            if found is not None and not self._over.wait(_GRACE):
                self._terminate(found)

    def _adopt_children(self) -> None:
        """Takes the launched processes from Lightning, which would kill this one silently if one of them failed."""
        for thread in threading.enumerate():
            if thread.name == "child-process-observer" and (launched := getattr(thread, "_child_processes", None)):
                self._children = launched
                thread._child_processes = []  # pyright: ignore[reportAttributeAccessIssue] - its way to end

    def _failure(self) -> _Failure | None:
        """The failure of another rank; None if there is none."""
        status = read_status(self._run)
        if status != self._before and status.get("state") == "failed" and status.get("rank", rank()) != rank():
            return _Failure(f"rank {status['rank']} has failed: {status.get('reason')}", True, status["rank"])
        if self._parent not in (None, os.getppid()):
            return _Failure("rank 0 is gone", False, 0)
        for number, child in enumerate(self._children, start=rank() + 1):
            if (code := child.poll()) not in _IN_ORDER:
                how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
                return _Failure(f"rank {number} {how}", False, number)
        return None

    def _terminate(self, failure: _Failure) -> None:
        """Ends this process, whatever it is waiting for, and those that it launched."""
        with contextlib.suppress(OSError):
            if not failure.is_noted:
                facts = {} if failure.rank is None else {"rank": failure.rank}
                write_status(self._run, "failed", reason=failure.message, **facts)
        with contextlib.suppress(OSError, ValueError):
            print(f"ssl-toolkit: error: {place()}: {failure.message}", file=sys.stderr)
            sys.stdout.flush()
            sys.stderr.flush()
        for child in self._children:
            child.kill()
        os._exit(1)


def _parent() -> int | None:
    """The id of rank zero's process, if it launched this one; else None."""
    if "TORCHELASTIC_RUN_ID" in os.environ or "LOCAL_RANK" not in os.environ:
        return None
    parent = os.environ.get(_RANK_ZERO_PID)
    return int(parent) if parent and parent != str(os.getpid()) else None


def _is_of_the_connection(error: Exception) -> bool:
    """Whether an error is about the connection to the other processes."""
    import torch.distributed as dist

    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and bool(_OF_A_CONNECTION.search(str(error)))
    )
