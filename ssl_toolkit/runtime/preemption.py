"""Preemption: at SIGTERM, SIGUSR1 or Ctrl-C a run finishes the step, saves, and ends.

A signal's handler only notes it. Lightning's own takes part in a broadcast at whatever moment the signal comes, and
waits for ever if only one of several processes gets it.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

from lightning.pytorch import Trainer

from ssl_toolkit.distributed.ranks import is_rank_zero
from ssl_toolkit.errors import INTERRUPTED
from ssl_toolkit.run_folder import write_status

# what a shell reports of a process that SIGTERM ended
EXIT_STATUS = 128 + signal.SIGTERM


class Preemption:
    """Preemption handler: listens for SIGTERM, SIGUSR1 and SIGINT (Ctrl-C) while a run trains.

    Attributes:
        number: The signal that this process got; 0 for none.
        is_held: Signals are noted even after an error (see `ssl_toolkit.runtime.rank_failure`).
    """

    def __init__(self) -> None:
        self.number = 0
        self.is_held = False
        self._handlers: dict[int, Any] = {}

    @property
    def is_listening(self) -> bool:
        """Whether signals are noted."""
        return bool(self._handlers)

    def listen(self) -> None:
        """From now on the signals are noted; does nothing outside of the main thread, which alone gets them."""
        if threading.current_thread() is not threading.main_thread():
            return
        self.number = 0
        # not on Windows
        for name in ("SIGTERM", "SIGUSR1", "SIGINT"):
            if number := getattr(signal, name, None):
                self._handlers[number] = signal.signal(number, self._note)

    def stop_listening(self) -> None:
        """Puts back the handlers that were there before."""
        for number, handler in self._handlers.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._handlers = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        if number == signal.SIGINT:
            # the second Ctrl-C is not to wait for a step
            signal.signal(number, signal.default_int_handler)
            if is_rank_zero():
                os.write(2, b"\nsaving after this step; Ctrl-C again ends at once\n")

    def leave(self, trainer: Trainer, number: int) -> None:
        """Ends the process, as all others of the run; what is to be saved has been.

        Under SLURM, SIGUSR1 (``#SBATCH --signal=SIGUSR1@120``) has the job queued again, once.

        Args:
            trainer: Of the run.
            number: The signal that one of the processes got.

        Raises:
            SystemExit: With the status 143; 130 for Ctrl-C.
        """
        self.stop_listening()
        if trainer.is_global_zero:
            run, name = Path(trainer.default_root_dir), signal.Signals(number).name
            write_status(run, "preempted", step=trainer.global_step, reason=name)
            print(
                f"\nstopped by {name} at step {trainer.global_step:,}; go on with --resume {shlex.quote(str(run))}",
                flush=True,
            )
            job = _slurm_job()
            if job and name == "SIGUSR1":
                _requeue(job)
        raise SystemExit(INTERRUPTED if number == signal.SIGINT else EXIT_STATUS)


def is_restarted() -> bool:
    """Whether SLURM or torchrun has started the same command again after it was stopped."""
    return any(int(os.environ.get(name) or 0) > 0 for name in ("SLURM_RESTART_COUNT", "TORCHELASTIC_RESTART_COUNT"))


def restart_remarks() -> list[str]:
    """What to say where torchrun is going to start processes again, and might not get through."""
    restarts = int(os.environ.get("TORCHELASTIC_MAX_RESTARTS") or 0)
    if not restarts or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return []
    return [
        "torchrun: processes that are started again may wait for those that died: set "
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 where torchrun is started"
    ]


def _requeue(job: str) -> None:
    command = ["scontrol", "requeue", job]
    try:
        subprocess.run(command, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"the job is not queued again: {' '.join(command)} failed ({error})", file=sys.stderr)


def _slurm_job() -> str | None:
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")
