"""A callback by which a run's processes get a signal at a moment of choice, and what a forked child does with it."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback

from ssl_toolkit.cli.train import train
from ssl_toolkit.distributed.ranks import rank, world_size

# in the middle of an epoch; the tests save after as many steps
STEP = 3


class SendSignal(Callback):
    """Rank zero sends the signal, once.

    Args:
        number: The signal.
        who: "first", "second", "all" or "launcher".
        moment: "training" (within a step), "validation" (within it) or "saving" (before a checkpoint is flushed).
        folder: Where the processes tell their numbers, and when the signal was sent.
    """

    def __init__(self, number: int, who: str, moment: str, folder: str) -> None:
        self.number, self.who, self.moment, self.folder = number, who, moment, Path(folder)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        (self.folder / f"rank-{rank()}").write_text(str(os.getpid()))
        if self.moment == "saving":
            original = os.fsync

            def fsync(descriptor: int) -> None:
                # other files are flushed, too
                if "/checkpoints/" in str(Path(f"/proc/self/fd/{descriptor}").readlink()):
                    self._send("saving")
                original(descriptor)

            os.fsync = fsync

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == STEP:
            self._send("training")

    def on_validation_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if not trainer.sanity_checking:
            self._send("validation")

    def _send(self, moment: str) -> None:
        sent = self.folder / "sent"
        if moment != self.moment or rank() or sent.exists():
            return
        pids = [self._pid(each) for each in range(world_size())]
        sent.write_text(str(time.time()))
        whom = {"first": pids[:1], "second": pids[1:], "all": pids, "launcher": [os.getppid()]}[self.who]
        for pid in whom:
            os.kill(pid, self.number)

    def _pid(self, number: int) -> int:
        file = self.folder / f"rank-{number}"
        while not (file.exists() and (text := file.read_text())):
            time.sleep(0.01)
        return int(text)


def train_as_rank(arguments: list[str], number: int, size: int, port: int) -> None:
    """Trains as one of the processes that torchrun would start."""
    torch.set_num_threads(1)
    if size > 1:
        os.environ |= {
            "RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size),
            "GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "tests", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        }  # fmt: skip
    train("pretrain", arguments, quietly=True)
