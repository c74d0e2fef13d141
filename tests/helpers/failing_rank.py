"""A callback by which one process of a run fails in a way of choice."""

from __future__ import annotations

import os
import signal
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback

from ssl_toolkit.distributed.ranks import rank, world_size

STEP = 3
# in seconds, of the exchanges between processes, for what nothing else ends; it is half an hour by default
TIMEOUT = 8


class FailingRank(Callback):
    """Fails once.

    Args:
        how: In what way.
        who: The rank that fails.
        note: A file that is written just before.
    """

    def __init__(self, how: str, who: int, note: str) -> None:
        self.how, self.who, self.note = how, who, note

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        if self.how == "skipped collective":
            # now that the processes have found each other, which takes them longer on a busy machine
            set_timeout = getattr(torch.distributed, "set_timeout", None)  # not in torch 2.11
            set_timeout = set_timeout or torch.distributed.distributed_c10d._set_pg_timeout
            set_timeout(timedelta(seconds=TIMEOUT))

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        assert world_size() == 2
        if trainer.global_step != STEP:
            return
        if self.how == "busy" and rank() != self.who:
            time.sleep(600)
        if rank() != self.who:
            return
        Path(self.note).write_text(str(time.time()))
        if self.how in ("user error", "busy"):
            raise ValueError("the images of this machine are gone; bring them back")
        if self.how == "bug":
            raise KeyError("a bug")
        if self.how == "exit":
            sys.exit(0)
        if self.how == "sudden exit":
            os._exit(0)
        if self.how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        # the other one is not asked
        assert self.how == "skipped collective"
        torch.distributed.all_reduce(torch.ones(1))
