"""Trains by the command line's own function in processes that `run_processes` has started, as if torchrun had."""

from __future__ import annotations

import os
from typing import Any
from unittest.mock import patch

from ssl_toolkit.cli.train import train
from ssl_toolkit.distributed.ranks import rank, world_size


def train_together(command: str, arguments: list[str]) -> Any:
    """Trains; alone in one process, with all of them in several."""
    if world_size() == 1:
        return train(command, arguments, quietly=True)
    told = {
        "RANK": str(rank()), "LOCAL_RANK": str(rank()), "WORLD_SIZE": str(world_size()),
        "LOCAL_WORLD_SIZE": str(world_size()), "GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "tests",
        # the processes have found each other already
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0",
    }  # fmt: skip
    with patch.dict(os.environ, told):
        together = ["--trainer.devices", str(world_size()), "--trainer.strategy", "ddp"]
        return train(command, [*arguments, *together], quietly=True)
