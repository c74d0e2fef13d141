"""Runs a function in several processes that talk over gloo, as a distributed run does; for tests only."""

from __future__ import annotations

import multiprocessing
import pickle
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist


def run_processes(function: Callable[..., Any], world_size: int, *arguments: Any, timeout: float = 90.0) -> list[Any]:
    """Runs ``function(*arguments)`` in ``world_size`` processes with ``torch.distributed`` initialised.

    Args:
        function: A function at the top level of a test module.
        world_size: How many processes.
        arguments: What each process gets; anything that can be pickled.
        timeout: Seconds after which the processes are killed.

    Returns:
        What the function returned, in the order of the ranks.

    Raises:
        AssertionError: If a process failed (with its traceback) or did not end in time.
    """
    # Not fork: a child forked after torch has started threads may hang. The server forks from a clean process that
    # has imported torch once, so a test pays for the import only the first time.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "timm", "lightning"])
    with tempfile.TemporaryDirectory() as folder:
        jobs = [
            context.Process(target=_child, args=(function, rank, world_size, folder, arguments), daemon=True)
            for rank in range(world_size)
        ]
        for job in jobs:
            job.start()
        for job in jobs:
            job.join(timeout)
            if job.is_alive():
                job.kill()
                job.join()
        outcomes = [_outcome(Path(folder, str(rank)), job.exitcode) for rank, job in enumerate(jobs)]
    failures = [f"rank {rank}: {text}" for rank, (ok, text) in enumerate(outcomes) if not ok]
    assert not failures, "\n".join(failures)
    return [result for _, result in outcomes]


def _outcome(file: Path, exitcode: int | None) -> tuple[bool, Any]:
    return pickle.loads(file.read_bytes()) if file.exists() else (False, f"killed or crashed (exit code {exitcode})")


def _child(function: Callable[..., Any], rank: int, world_size: int, folder: str, arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    try:
        dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world_size)
        outcome = (True, function(*arguments))
        dist.destroy_process_group()
    except BaseException:
        outcome = (False, traceback.format_exc())
    partial = Path(folder, f"{rank}.partial")
    partial.write_bytes(pickle.dumps(outcome))
    partial.rename(Path(folder, str(rank)))
