"""What the benchmarks share: processes that are measured one after the other, and peers in their own environments."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).parent
PEERS = Path(os.environ.get("SSL_TOOLKIT_PEERS", Path.home() / ".cache" / "ssl-toolkit" / "peers"))

# how many cores other programs may take while we measure
MOST_OTHERS = 0.1


class Window(NamedTuple):
    """One measurement.

    Attributes:
        figures: What its process printed last, as JSON; empty if that is none.
        seconds: How long the process took.
        others: How many cores other programs took in that time.
    """

    figures: dict[str, Any]
    seconds: float
    others: float


class Turn(NamedTuple):
    """One turn of a process that trains.

    Attributes:
        steps_per_second: Its speed.
        others: How many cores other programs took in that time.
        peak_memory: The largest resident memory of the process so far, in bytes; 0 where the system does not tell.
    """

    steps_per_second: float
    others: float
    peak_memory: int


def peer_python(name: str, *packages: str) -> Path | None:
    """The interpreter of a separate environment, which is made on first use; None where it cannot be.

    Args:
        name: Of the peer's package, as pip knows it.
        *packages: What pip is to install; the package alone by default.
    """
    python = PEERS / name / "bin" / "python"
    works = [str(python), "-c", f"import importlib.metadata as m; m.version({name!r})"]
    if python.exists() and subprocess.run(works, capture_output=True, check=False).returncode == 0:
        return python
    print(f"making an environment for {name} (once)", file=sys.stderr)
    install = [str(python), "-m", "pip", "install", "--quiet", *(packages or [name])]
    for command in ([sys.executable, "-m", "venv", str(PEERS / name)], install):
        if subprocess.run(command, check=False).returncode:
            print(f"not measured: {name}, which could not be installed", file=sys.stderr)
            return None
    return python


def lightly_python() -> Path | None:
    """The interpreter of lightly's environment, or None (see `peer_python`)."""
    return peer_python("lightly", "lightly", "timm", "torch", "torchvision", "kornia")


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


def peak_memory() -> int:
    """The largest resident memory of this program so far, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():
        # not ru_maxrss, which begins with the peak of the process that started this one
        return 1024 * int(next(line.split()[1] for line in status.read_text().splitlines() if "VmHWM" in line))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


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
        if windows[-1].others < MOST_OTHERS:
            break
    return min(windows, key=lambda each: each.others)


class Trainee:
    """A process that trains and prints ``time.monotonic()`` after each step; stopped but in its turns.

    Args:
        command: What is measured.
        folder: For what it prints.
        environment: Variables beside those of this process.
    """

    WARM_UP = 6

    def __init__(self, command: list[str], folder: Path, environment: Mapping[str, str] | None = None) -> None:
        self.command = command
        self._folder = folder
        with (folder / "steps").open("w") as steps, (folder / "errors").open("w") as errors:
            self._process = subprocess.Popen(
                command, stdout=steps, stderr=errors, cwd=HERE.parent, start_new_session=True,
                env={**os.environ, **(environment or {}), "PYTHONUNBUFFERED": "1"},
            )  # fmt: skip
        try:
            while len(self._steps()) < self.WARM_UP:
                time.sleep(0.2)
                if self._process.poll() is not None:
                    said = (folder / "errors").read_text(errors="replace")
                    raise SystemExit(f"{' '.join(command)} failed:\n{said[-2000:]}")
        except BaseException:
            self.end()
            raise
        self._signal(signal.SIGSTOP)

    def turn(self, seconds: float) -> Turn:
        """Lets the process go on for so long, or for three steps if these take longer."""
        busy, own, start = busy_seconds(), self._cpu_seconds(), time.monotonic()
        self._signal(signal.SIGCONT)
        time.sleep(seconds)
        while len(found := [step for step in self._steps() if step > start]) < 4:
            if self._process.poll() is not None:
                raise SystemExit(f"{' '.join(self.command)} ended by itself")
            time.sleep(0.2)
        self._signal(signal.SIGSTOP)
        others = (busy_seconds() - busy) - (self._cpu_seconds() - own)
        rate = (len(found) - 1) / (found[-1] - found[0])
        return Turn(rate, max(0.0, others) / (time.monotonic() - start), self._peak_memory())

    def end(self) -> None:
        """Ends the process and those that it has started."""
        self._signal(signal.SIGKILL)
        self._process.wait()

    def _peak_memory(self) -> int:
        status = Path(f"/proc/{self._process.pid}/status")
        lines = status.read_text().splitlines() if status.exists() else []
        return next((1024 * int(line.split()[1]) for line in lines if "VmHWM" in line), 0)

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def _steps(self) -> list[float]:
        """When the steps so far ended; what is no number (a library's message) is passed over."""
        found = []
        for line in (self._folder / "steps").read_text(errors="replace").splitlines(keepends=True):
            with contextlib.suppress(ValueError):
                found += [float(line)] if line.endswith("\n") else []
        return found

    def _cpu_seconds(self) -> float:
        """What the processes of the session have worked so far."""
        ticks = 0
        for file in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                fields = file.read_text().rpartition(")")[2].split()
                ticks += int(fields[11]) + int(fields[12]) if int(fields[3]) == self._process.pid else 0
        return ticks / os.sysconf("SC_CLK_TCK")


def in_turns(
    commands: Mapping[str, list[str]], seconds: float, rounds: int, tries: int, environment: Mapping[str, str]
) -> dict[str, list[Turn]]:
    """Measures processes that train against each other.

    All live at the same time, but only one of them runs at any moment, for some seconds: so a neighbour on the machine
    who is busy for minutes meets all of them equally. A turn in which other programs worked is made again.

    Args:
        commands: What is measured, by name.
        seconds: Of a turn.
        rounds: Turns of each.
        tries: How often a turn is made at most.
        environment: Variables for the processes.

    Returns:
        For each name its turns.
    """
    turns: dict[str, list[Turn]] = {name: [] for name in commands}
    # stopped processes would stay for ever
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        trainees = {}
        for number, (name, command) in enumerate(commands.items()):
            own = Path(folder) / str(number)
            own.mkdir()
            trainees[name] = Trainee(command, own, environment)
            stack.callback(trainees[name].end)
        for number in range(rounds):
            for name, trainee in trainees.items():
                turns[name].append(_undisturbed_turn(trainee, seconds, tries))
                rate, others, _ = turns[name][-1]
                print(f"round {number + 1}: {name}: {rate:.3g} steps/s, others {others:.2f} cores", file=sys.stderr)
    return turns


def _undisturbed_turn(trainee: Trainee, seconds: float, tries: int) -> Turn:
    made: list[Turn] = []
    while len(made) < tries and not (made and made[-1].others < MOST_OTHERS):
        made.append(trainee.turn(seconds))
    return min(made, key=lambda each: each.others)


def median_and_range(values: list[float], digits: int = 2) -> str:
    """A table's cell."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def median_and_quartiles(values: list[float], digits: int = 2) -> str:
    """A table's cell, for many values."""
    low, _, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return f"{statistics.median(values):.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"


def add_outputs(parser: argparse.ArgumentParser) -> None:
    """The options that all benchmarks share."""
    parser.add_argument("--json", type=Path, help="a file to write the figures to")
    parser.add_argument("--picture", type=Path, help="a PNG file to draw them to")


def check_trained_rows(args: argparse.Namespace) -> None:
    """Ends the program in a line where images, weights, or the places for what is found are missing."""
    for name in ("images", "test"):
        if not getattr(args, name) or not Path(getattr(args, name)).is_dir():
            raise SystemExit(f"--{name} {getattr(args, name)} is not a folder; give one of images by class")
    if not args.weights or not args.weights.is_file():
        raise SystemExit(f"--weights {args.weights} is not a file; give a backbone.safetensors of a run")
    if not args.json or not args.runs:
        raise SystemExit("give --json, a file for finished rows, and --runs, a folder for the runs")


def write_json(file: Path | None, figures: Any) -> None:
    """Writes the figures, if there is a file for them."""
    if file:
        file.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def draw_bars(file: Path | None, groups: Mapping[str, Mapping[str, list[float]]], unit: str) -> None:
    """Draws a diagram for each group: a bar for each name, the median with its quartiles; nothing without a file."""
    if not file:
        return
    import numpy as np
    from matplotlib.figure import Figure

    rows = max(map(len, groups.values()))
    figure = Figure(figsize=(7 * len(groups), 0.45 * rows + 1.3), layout="constrained")
    diagrams: Any = figure.subplots(1, len(groups), squeeze=False)[0]
    for axes, (title, group) in zip(diagrams, groups.items(), strict=True):
        low, middle, high = np.array([np.percentile(values, [25, 50, 75]) for values in group.values()]).T
        colours = ["#4c72b0" if "ssl-toolkit" in name else "#b0b7c3" for name in group]
        axes.barh(list(group), middle, xerr=[middle - low, high - middle], color=colours, capsize=3)
        axes.invert_yaxis()
        axes.set(xlabel=f"{unit} (median and quartiles)", title=title)
        axes.grid(axis="x", alpha=0.3)
    figure.savefig(file, dpi=150)


def save_small(figure: Any, file: Path, dpi: int = 80) -> None:
    """Saves a figure in few colours: a third of the bytes, for a picture that is kept in the repository."""
    import io

    from PIL import Image

    whole = io.BytesIO()
    figure.savefig(whole, format="png", dpi=dpi)
    Image.open(whole).convert("RGB").quantize(128).save(file, optimize=True)
