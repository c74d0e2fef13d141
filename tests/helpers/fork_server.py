"""A clean process that has imported everything once and forks a child for each job: a start in a tenth of the time.

A test's own process cannot be forked: torch's threads, once started, may leave a child waiting for ever. So this file
is also the program of that process, which starts no thread; it takes its jobs from its standard input, one JSON list
a line, and answers likewise.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import pkgutil
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any


class ForkServer:
    """The clean process, seen from a test; a context manager."""

    def __init__(self) -> None:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def __enter__(self) -> ForkServer:
        return self

    def __exit__(self, *_: Any) -> None:
        # it has nothing to put in order, which takes seconds
        self._process.kill()
        self._process.communicate(timeout=60)

    def start(self, function: str, *arguments: Any, log: Path) -> int:
        """Calls a function in a child.

        Args:
            function: As ``module.name``.
            *arguments: For the function; plain data.
            log: Where the child's output goes.

        Returns:
            The child's process id.
        """
        return self._ask(["start", str(log), function, *arguments])

    def wait(self, pid: int, timeout: float = 120.0) -> int:
        """The exit status of a child, negative for a signal; one that does not end in time is killed."""
        return self._ask(["wait", pid, timeout])

    def run(self, function: str, *arguments: Any, log: Path) -> int:
        """Calls a function in a child and waits for its exit status."""
        return self.wait(self.start(function, *arguments, log=log))

    def _ask(self, request: list[Any]) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(request), file=self._process.stdin, flush=True)
        return json.loads(self._process.stdout.readline())


def _start(log: str, function: str, *arguments: Any) -> int:
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for number in (1, 2):
            os.dup2(output, number)
        module, _, name = function.rpartition(".")
        getattr(importlib.import_module(module), name)(*arguments)
        status = 0
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)  # without what the parent has registered for its end


def _wait(pid: int, timeout: float) -> int:
    deadline = time.monotonic() + timeout
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.002)


def _serve() -> None:
    import torch

    import methods
    import ssl_toolkit

    torch.set_num_threads(1)
    found = [module.name for module in pkgutil.walk_packages(ssl_toolkit.__path__, "ssl_toolkit.")]
    found.remove("ssl_toolkit.__main__")
    for name in [*found, "killed_runs", "docstring_parser", "fsspec", "jinja2", "matplotlib.figure"]:
        importlib.import_module(name)
    methods.tasks()
    # no child looks for garbage in what is there now
    gc.collect()
    gc.freeze()
    requests = {"start": _start, "wait": _wait}
    for line in sys.stdin:
        what, *arguments = json.loads(line)
        print(json.dumps(requests[what](*arguments)), flush=True)


if __name__ == "__main__":
    _serve()
