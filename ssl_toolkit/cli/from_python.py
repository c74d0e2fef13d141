"""What is different where Python, and not a shell, gives a command: its process goes on afterwards."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from jsonargparse import Namespace
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from ssl_toolkit.cli.run_context import quiet
from ssl_toolkit.errors import CANNOT_WRITE, INTERRUPTED, RunFailed, is_interrupt
from ssl_toolkit.perf.malloc import keep_freed_memory
from ssl_toolkit.runtime.preemption import EXIT_STATUS

# what a run tells the processes that Lightning starts for it
OF_A_RUN = ("SSL_TOOLKIT_STARTED", "SSL_TOOLKIT_RANK_ZERO_PID")
# what a run, and Lightning, tell libraries and the processes that they start
_VARIABLES = (
    *OF_A_RUN, "OMP_NUM_THREADS", "CUBLAS_WORKSPACE_CONFIG",
    "MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "WORLD_SIZE",
)  # fmt: skip
# how long several processes may take to save their state when they are told to end
_PATIENCE = 60.0


@contextlib.contextmanager
def called_from_python() -> Iterator[None]:
    """Lets a command see what the command line gives it, and puts back what it changes.

    Raises:
        KeyboardInterrupt: For Ctrl-C in the middle of a training, at which Lightning leaves the interpreter.
    """
    keep_freed_memory()
    here = str(Path.cwd())
    is_new = here not in sys.path
    if is_new:
        sys.path.append(here)  # a task in a file of the user's own is found by its class path
    try:
        with _state_restored():
            yield
    except SystemExit as stop:
        if stop.code == INTERRUPTED or is_interrupt(stop):
            raise KeyboardInterrupt from None
        raise
    finally:
        if is_new and here in sys.path:
            sys.path.remove(here)


@contextlib.contextmanager
def _state_restored() -> Iterator[None]:
    """Puts back what belongs to the whole process: settings of torch, variables, the answer to Ctrl-C."""
    threads, interrupt, is_together = torch.get_num_threads(), signal.getsignal(signal.SIGINT), dist.is_initialized()
    deterministic = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark = torch.backends.cudnn.benchmark
    try:
        with variables_restored(_VARIABLES), torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic[0], warn_only=deterministic[1])
        torch.backends.cudnn.benchmark = benchmark
        if interrupt is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, interrupt)
        if not is_together and dist.is_initialized() and dist.get_world_size() == 1:
            dist.destroy_process_group()


@contextlib.contextmanager
def variables_restored(names: Sequence[str] = OF_A_RUN) -> Iterator[None]:
    """Puts environment variables back: the next run of this process is another one."""
    variables = {name: os.environ.get(name) for name in names}
    try:
        yield
    finally:
        for name, value in variables.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def starts_processes(trainer: Namespace) -> bool:
    """Whether Lightning is going to start the other processes of a run, which no launcher has started.

    Args:
        trainer: The arguments of Lightning's Trainer, as they were parsed.
    """
    chosen: dict[str, Any] = {name: trainer[name] for name in ("accelerator", "devices", "num_nodes")}
    chosen |= {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    try:
        with quiet():
            probe = Trainer(**chosen, enable_model_summary=False)
    except (MisconfigurationException, TypeError, ValueError):
        return False  # the run will say what is wrong
    environment = probe._accelerator_connector.cluster_environment
    return probe.world_size > 1 and not environment.creates_processes_externally


def run_command(command: str, arguments: Sequence[str]) -> None:
    """Runs the command line in a process of its own, with whose first process Lightning starts the others.

    Lightning starts them by running the program once more, which is a user's script here, with all that it does before
    and after, or a notebook, which cannot be run again.

    Args:
        command: ``pretrain`` or ``transfer``.
        arguments: The command line after it.

    Raises:
        ValueError: What the command line says, which also stands in the error stream.
        OSError: Likewise, where the disk is full.
        SystemExit: The system has told it to end; its state is saved.
    """
    # a class that can be imported here can be imported there
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    call = [sys.executable, "-m", "ssl_toolkit", command, *arguments]
    said = ""
    sys.stdout.flush()  # what was printed before comes first
    with subprocess.Popen(call, env=environment, stderr=subprocess.PIPE, text=True, errors="replace") as process:
        try:
            for line in process.stderr or ():
                sys.stderr.write(line)
                _, is_error, message = line.partition("ssl-toolkit: error: ")
                said = said or (message.strip() if is_error else "")
            status = process.wait()
        except BaseException:
            process.terminate()  # at which it saves its state
            try:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_PATIENCE)
            finally:
                process.kill()
            raise
    if status == EXIT_STATUS:
        raise SystemExit(EXIT_STATUS)
    if status == INTERRUPTED:
        raise KeyboardInterrupt
    if status == CANNOT_WRITE:
        raise OSError(said)
    if status:
        said = said or f"the processes of the run ended with status {status}; what they said stands above"
        raise ValueError(said) if status == 2 else RunFailed(said)
