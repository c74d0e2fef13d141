"""A copy of the project, in which bugs are planted and tests run, while the working tree stays as it is."""

from __future__ import annotations

import compileall
import contextlib
import importlib
import os
import py_compile
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import types
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
# the quick tests of one process; that pytest finds libraries which are there already is no fault
OPTIONS = [
    "-o", "addopts=", "-m", "not slow and not nightly", "-n", "0", "-x", "-q", "-ra", "-p", "no:cacheprovider",
    "-W", "ignore:Module already imported",
]  # fmt: skip
# a mutant may ask for any amount
MOST_MEMORY, LARGEST_FILE = 16 << 30, 4 << 30


class Outcome(NamedTuple):
    """What the tests said.

    Attributes:
        name: "survived", "found", "stopped" because they did not end in time, or "none" where there was no test.
        by: The test that failed, or what pytest said last; empty if nothing failed.
        seconds: How long they took.
    """

    name: str
    by: str
    seconds: float


class ProjectCopy:
    """A copy of the project.

    Args:
        project: The project; what git ignores is left out.
        folder: An empty one, for the copy and what the tests write.

    Attributes:
        root: Of the copy.
    """

    def __init__(self, project: Path, folder: Path) -> None:
        self.root = folder / "project"
        self._home = folder / "home"
        self._home.mkdir()
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=project, capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        for name in filter(None, listed.split("\0")):
            if (project / name).is_file():
                (self.root / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(project / name, self.root / name)
        # by time and size alone, a mutant could pass for another one that was planted in the same second
        compileall.compile_dir(self.root, quiet=2, invalidation_mode=py_compile.PycInvalidationMode.CHECKED_HASH)

    def run(self, files: list[str], limit: float) -> Outcome:
        """Runs the quick tests of some files until one fails, in a fork of this process.

        The fork has the libraries that this process has imported, and nothing of the project.

        Args:
            files: From the root of the project, in the order in which they run.
            limit: Seconds after which they are stopped.
        """
        start = time.monotonic()
        log = self._home / "log"
        child = os.fork()
        if not child:
            self._become_pytest(files, log)
        try:
            status = _wait(child, start + limit)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)  # what the tests have started, too
        seconds = time.monotonic() - start
        shutil.rmtree(self._home / "tmp", ignore_errors=True)
        if status in (None, 0, 5):
            return Outcome({None: "stopped", 0: "survived"}.get(status, "none"), "", seconds)
        said = log.read_text(encoding="utf-8", errors="replace")
        failed = re.search(r"^(?:FAILED|ERROR) (\S+)", said, re.MULTILINE)
        return Outcome("found", failed[1] if failed else f"exit status {status}: {said.strip()[-200:]}", seconds)

    def _become_pytest(self, files: list[str], log: Path) -> None:
        status = 1
        try:
            os.setsid()
            output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            for number in (1, 2):
                os.dup2(output, number)
            resource.setrlimit(resource.RLIMIT_DATA, (MOST_MEMORY, MOST_MEMORY))
            resource.setrlimit(resource.RLIMIT_FSIZE, (LARGEST_FILE, LARGEST_FILE))
            os.chdir(self.root)
            # a bug may write or delete where it should not
            temporary = self._home / "tmp"
            temporary.mkdir(exist_ok=True)
            tempfile.tempdir = None
            os.environ.update(HOME=str(self._home), XDG_CACHE_HOME=str(self._home), TMPDIR=str(temporary))
            os.environ["PYTHONPATH"] = str(self.root)
            here = [str(HERE), str(HERE.parent), str(HERE.parents[1])]
            sys.path[:] = [str(self.root), *(each for each in sys.path if each not in here)]
            for name, module in list(sys.modules.items()):
                if name != "__main__" and str(getattr(module, "__file__", "")).startswith(str(HERE.parent)):
                    del sys.modules[name]
            # the processes that a test starts would import the program that started this one
            sys.modules["__main__"] = types.ModuleType("__main__")
            status = int(importlib.import_module("pytest").main([*OPTIONS, *files]))
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)  # without what the parent has registered for its end


def _wait(child: int, deadline: float) -> int | None:
    """The exit status of a child; None if it is stopped at the deadline."""
    while time.monotonic() < deadline:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None
