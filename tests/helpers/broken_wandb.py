"""What can happen to W&B in the middle of a run; as a script, a run to which it happens.

python broken_wandb.py SABOTAGE RECIPE RUN
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

STEP = 4


def wandb_core() -> int:
    """The process that W&B has started for this one."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            pid, name, state, parent = stat.read_text().split()[:4]
        except OSError:
            continue
        if name == "(wandb-core)" and parent == str(os.getpid()) and state != "Z":
            found.append(int(pid))
    (process,) = found
    return process


def kill(run: Path) -> None:
    """The process is killed, as by a system short of memory."""
    process = wandb_core()
    os.kill(process, signal.SIGKILL)
    while Path(f"/proc/{process}/stat").read_text().split()[2] != "Z":
        time.sleep(0.01)


def stop(run: Path) -> None:
    """The process hangs."""
    os.kill(wandb_core(), signal.SIGSTOP)


def remove_folder(run: Path) -> None:
    """Somebody tidies up."""
    shutil.rmtree(run / "wandb")


def fill_disk(run: Path) -> None:
    """Nothing more can be written by W&B's process: the quota is used up."""
    import resource

    resource.prlimit(wandb_core(), resource.RLIMIT_FSIZE, (1, 1))


def nothing(run: Path) -> None:
    """All is well, or was not from the start."""


SABOTAGES: dict[str, Callable[[Path], None]] = {
    each.__name__: each for each in (kill, stop, remove_folder, fill_disk, nothing)
}


def sabotage_at_step(patch: Any, name: str) -> list[int]:
    """Has it happen before a step is made; the list gets the step.

    Args:
        patch: pytest's.
        name: Of the sabotage.
    """
    from ssl_toolkit.task import Task

    original, happened = Task.training_step, []

    def training_step(self: Task, batch: Any, batch_idx: int) -> Any:
        if self.global_step == STEP and not happened:
            happened.append(self.global_step)
            SABOTAGES[name](Path(self.trainer.default_root_dir))
        return original(self, batch, batch_idx)

    patch.setattr(Task, "training_step", training_step)
    return happened


if __name__ == "__main__":
    from ssl_toolkit.cli import main
    from ssl_toolkit.tracking import weights_and_biases

    weights_and_biases.INIT_SECONDS = weights_and_biases.ANSWER_SECONDS = 3
    sabotage_at_step(pytest.MonkeyPatch(), sys.argv[1])
    sys.exit(main(["pretrain", "-c", sys.argv[2], "--out", sys.argv[3]]))
