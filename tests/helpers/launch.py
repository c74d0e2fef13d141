"""Runs of several processes, started as a user starts them, and looked at from outside."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

import methods
from ssl_toolkit.checkpoint.io import read_checkpoint
from ssl_toolkit.run_folder import newest_checkpoint

ROOT = Path(__file__).parents[2]
# a launcher's own settings must not depend on what a test runs in
ENVIRONMENT = {
    name: value
    for name, value in os.environ.items()
    if not name.startswith(("SLURM", "TORCHELASTIC", "MASTER_")) and name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")
} | {"OMP_NUM_THREADS": "1", "PYTHON": sys.executable}


def write_recipe(folder: Path, name: str = "SimCLR", **changes: Any) -> str:
    """The recipe of a method as a file; sections of ``changes`` are merged into its own."""
    recipe = methods.recipe(name, folder / "data")
    for section, values in changes.items():
        recipe[section] = {**recipe.get(section, {}), **values} if isinstance(values, dict) else values
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(recipe))
    return str(file)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@contextlib.contextmanager
def started(command: list[str], log: Path, **environment: str) -> Iterator[subprocess.Popen[Any]]:
    """A command in its own process group, of which nothing is left at the end; what it says is in a file."""
    with log.open("w") as file:
        process = subprocess.Popen(
            command, env=ENVIRONMENT | environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            yield process
        finally:
            # torchrun gives each of its processes its own session
            for pid in [*descendants(process.pid), process.pid]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.wait()


def descendants(pid: int) -> list[int]:
    """The processes that a process started, and those that they started."""
    found = []
    for child in _children(pid):
        found += [child, *descendants(child)]
    return found


def worker(launcher: int, rank: int) -> int | None:
    """The process of a rank among those that a launcher has started; None if there is none yet."""
    for pid in descendants(launcher):
        with contextlib.suppress(OSError):
            values = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            if b"RANK=%d" % rank in values and Path(f"/proc/{pid}/cmdline").read_bytes():
                return pid
    return None


def _children(pid: int) -> list[int]:
    said = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False).stdout
    return [int(each) for each in said.split()]


def newest_step(run: Path) -> int:
    """The step of the newest checkpoint that is there; 0 without any."""
    return max((int(file.stem.split("-")[1]) for file in run.glob("checkpoints/step-*.ckpt")), default=0)


def wait_for(condition: Any, process: subprocess.Popen[Any], log: Path, seconds: float = 240) -> Any:
    """What a condition returns, as soon as it is true."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert process.poll() is None, f"ended with {process.returncode}: {log.read_text()[-3000:]}"
        assert time.monotonic() < deadline, log.read_text()[-3000:]
        time.sleep(0.01)
    return found


def state(run: Path) -> dict[str, Any]:
    """What the newest checkpoint holds, with whole tensors."""
    checkpoint = newest_checkpoint(run)
    assert checkpoint is not None
    return read_checkpoint(checkpoint)
