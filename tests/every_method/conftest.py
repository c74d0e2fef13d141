"""What the proofs of a method share."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from filelock import FileLock

import methods
from run_comparison import arguments_for, batches_noted
from ssl_toolkit.cli.train import train

# with the last batch of an epoch, where the number of batches is odd
FEW_IMAGES = {"max_images": 50}


class ReferenceRun(NamedTuple):
    """A run of a method that others are compared with; do not change its folder.

    Attributes:
        command: What trains the method.
        arguments: Of the command, but for ``--out``.
        folder: The run, with the checkpoint of each step.
        batches: What it saw: of each step the steps done, the epoch, the place in the epoch, and the samples.
    """

    command: str
    arguments: list[str]
    folder: Path
    batches: list[Any]


@pytest.fixture(scope="session")
def reference_run(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], ReferenceRun]:
    """Two epochs of a method with a checkpoint after each step, trained once for all tests and processes of pytest."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent

    def made(name: str) -> ReferenceRun:
        folder = shared / "reference" / name
        folder.mkdir(parents=True, exist_ok=True)
        run, notes, command = folder / "run", folder / "batches.json", methods.command(name)
        with FileLock(folder / "lock"):
            if not notes.exists():
                data = {"num_threads": 1, "cache": "none", **({} if methods.needs_sequences(name) else FEW_IMAGES)}
                changes = {"checkpoint": {"every_n_steps": 1, "keep": 99}, "data": data, "average": {"kind": "ema"}}
                arguments, batches = arguments_for(name, folder, changes, max_epochs=2), []
                with batches_noted(batches.append):
                    train(command, [*arguments, "--out", str(run)], quietly=True)
                notes.write_text(json.dumps([arguments, batches]))
            arguments, batches = json.loads(notes.read_text())
        return ReferenceRun(command, arguments, run, batches)

    return made
