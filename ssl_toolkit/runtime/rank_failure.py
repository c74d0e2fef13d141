"""When one of several processes fails, all end soon, and it is said which was the first, and why.

A process notes its own error in the run's status before it goes. The others meet a broken connection in their next
exchange, which is only the echo of that error, and say what is noted instead. A lookout ends those that do not get
there: busy elsewhere, or waiting in a library that does not notice that nobody will answer.
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
from typing import Any

from lightning.pytorch import Trainer

from ssl_toolkit.distributed.ranks import place, rank
from ssl_toolkit.errors import CANNOT_WRITE, RunFailed
from ssl_toolkit.run_folder import read_status, write_status
from ssl_toolkit.runtime.preemption import EXIT_STATUS, Preemption

# how often a lookout looks, how long it lets the process end by itself, and how long an echo waits for the first error
_EVERY, _GRACE, _PATIENCE = 2.0, 5.0, 3.0
_FIRST_PROCESS = "SSL_TOOLKIT_FIRST_PROCESS"
_IN_ORDER = (None, 0, EXIT_STATUS, CANNOT_WRITE)
_OF_A_CONNECTION = re.compile(r"gloo|nccl|process ?group|TCPStore|pair closure", re.IGNORECASE)


class LostCompanion(RunFailed):
    """The others cannot be reached any more.

    Attributes:
        is_noted: Whether the first error is in the run's status already.
    """

    def __init__(self, message: str, is_noted: bool) -> None:
        super().__init__(message)
        self.is_noted = is_noted


def introduce() -> None:
    """Lets processes that Lightning is going to launch know who their first one is."""
    if _parent() is None:
        os.environ[_FIRST_PROCESS] = str(os.getpid())


@contextlib.contextmanager
def stand_together(run: Path, trainer: Trainer, preemption: Preemption) -> Iterator[None]:
    """While several processes train: none is left behind by the failure of another.

    Args:
        run: The run's folder, which all of them see.
        trainer: Of the run.
        preemption: Goes on noting signals after an error: a launcher that sees one process end tells the others to go,
            too, and they have yet to say why.

    Raises:
        LostCompanion: For an error that is only the echo of another process's.
        RunFailed: If the training is ended from within as if it were complete.
    """
    if trainer.world_size == 1:
        yield
        return
    lookout = _Lookout(run)
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
        raise lookout.explain(error) from error
    finally:
        lookout.end()
        preemption.is_held = False
        preemption.stop_listening()


class _Lookout:
    """A thread that watches over the other processes, as far as they can be seen from here."""

    def __init__(self, run: Path) -> None:
        self._run = run
        self._before = read_status(run)
        self._parent = _parent()
        self._children: list[subprocess.Popen[Any]] = []
        self._over = threading.Event()
        threading.Thread(target=self._watch, name="companions", daemon=True).start()

    def end(self) -> None:
        """Looks no more."""
        self._over.set()

    def explain(self, error: Exception) -> LostCompanion:
        """What is behind a broken connection."""
        self._take_over()
        deadline = time.monotonic() + _PATIENCE
        while (found := self._trouble()) is None and time.monotonic() < deadline:
            time.sleep(0.1)
        # gloo goes on with advice
        said = (str(error).strip() or type(error).__name__).splitlines()[0].partition(". ")[0]
        if found is None and re.search(r"timed? ?out", said, re.IGNORECASE):
            found = f"another process does not answer: it is stuck, or does not do the same as this one ({said})", False
        if found is None:
            found = f"another process is gone; what it or its launcher said last tells why ({said})", False
        return LostCompanion(*found)

    def _watch(self) -> None:
        while not self._over.wait(_EVERY):
            self._take_over()
            found = self._trouble()
            if found is not None and not self._over.wait(_GRACE):
                self._leave(*found)

    def _take_over(self) -> None:
        """Looks after launched processes; Lightning, if one of them has failed, would kill this one without a word."""
        for thread in threading.enumerate():
            if thread.name == "child-process-observer" and (launched := getattr(thread, "_child_processes", None)):
                self._children = launched
                thread._child_processes = []  # pyright: ignore[reportAttributeAccessIssue] - its way to end

    def _trouble(self) -> tuple[str, bool] | None:
        """What happened to another process, and whether it is in the run's status; None if all is well."""
        status = read_status(self._run)
        if status != self._before and status.get("state") == "failed" and status.get("rank", rank()) != rank():
            return f"rank {status['rank']} has failed: {status.get('reason')}", True
        if self._parent not in (None, os.getppid()):
            return "rank 0 is gone", False
        for number, child in enumerate(self._children, start=rank() + 1):
            if (code := child.poll()) not in _IN_ORDER:
                how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
                return f"rank {number} {how}", False
        return None

    def _leave(self, reason: str, is_noted: bool) -> None:
        """Ends this process, whatever it is waiting for, and those that it launched."""
        with contextlib.suppress(OSError):
            if not is_noted:
                write_status(self._run, "failed", reason=reason, rank=rank())
        with contextlib.suppress(OSError, ValueError):
            print(f"ssl-toolkit: error: {place()}: {reason}", file=sys.stderr)
            sys.stdout.flush()
            sys.stderr.flush()
        for child in self._children:
            child.kill()
        os._exit(1)


def _parent() -> int | None:
    """The process that launched this one as another of the same run; None if it was not launched by one of them."""
    if "TORCHELASTIC_RUN_ID" in os.environ or "LOCAL_RANK" not in os.environ:
        return None
    parent = os.environ.get(_FIRST_PROCESS)
    return int(parent) if parent and parent != str(os.getpid()) else None


def _is_of_the_connection(error: Exception) -> bool:
    """Whether an error tells of nothing but the connection to the other processes."""
    import torch.distributed as dist

    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and bool(_OF_A_CONNECTION.search(str(error)))
    )
