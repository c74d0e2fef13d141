"""What the benchmarks share: processes that are measured one after the other, and peers in their own environments."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).parent
PEERS = Path(os.environ.get("SSL_TOOLKIT_PEERS", Path.home() / ".cache" / "ssl-toolkit" / "peers"))


class Window(NamedTuple):
    """One measurement.

    Attributes:
        figures: What its process printed last, as JSON; empty if that is none.
        seconds: How long the process took.
        others: How many cores other programs took meanwhile.
    """

    figures: dict[str, Any]
    seconds: float
    others: float


def lightly_python() -> Path | None:
    """The interpreter of lightly's environment, which is made on first use; None where it cannot be."""
    python = PEERS / "lightly" / "bin" / "python"
    works = [str(python), "-c", "import lightly"]
    if python.exists() and subprocess.run(works, capture_output=True, check=False).returncode == 0:
        return python
    print("making an environment for lightly (once)", file=sys.stderr)
    install = [str(python), "-m", "pip", "install", "--quiet", "lightly", "timm", "torch", "torchvision"]
    for command in ([sys.executable, "-m", "venv", str(PEERS / "lightly")], install):
        if subprocess.run(command, check=False).returncode:
            return None
    return python


def window(command: list[str]) -> Window:
    """Runs one measurement, and notes what other programs did; the process finds its start in ``STARTED_AT``."""
    busy, own, start = busy_seconds(), children_seconds(), time.perf_counter()
    environment = {**os.environ, "STARTED_AT": str(time.time())}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=HERE.parent, env=environment)
    seconds = time.perf_counter() - start
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    others = (busy_seconds() - busy) - (children_seconds() - own)
    try:
        figures = json.loads(done.stdout.strip().splitlines()[-1])
    except (IndexError, ValueError):
        figures = {}
    return Window(figures, seconds, max(0.0, others) / seconds)


def busy_seconds() -> float:
    """Seconds of all cores on which any program worked since the machine started; 0 where that is not known."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return 0.0
    user, nice, system, _, _, interrupts, soft, *_ = (int(n) for n in stat.read_text().splitlines()[0].split()[1:])
    return (user + nice + system + interrupts + soft) / os.sysconf("SC_CLK_TCK")


def children_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def undisturbed(command: list[str], tries: int, before: Callable[[], object] = lambda: None) -> Window:
    """The first measurement that no other program disturbed, or else the one disturbed least.

    Args:
        command: What is measured.
        tries: How often at most.
        before: What has to be done before each.
    """
    windows: list[Window] = []
    for _ in range(tries):
        before()
        windows.append(window(command))
        if windows[-1].others < 0.1:
            break
    return min(windows, key=lambda each: each.others)
