"""Writes docs/reliability.md: each goal with the figure that its tests reached, their names and their time.

    python tests/reliability_page.py

runs every test with ``@pytest.mark.goal("...")``, the slow ones included (about half an hour on two cores), and says in
the page what it saw: a goal whose test fails is a row that says so. A test notes its figure by ``reached("...")``.
"""

# ruff: noqa: E501 - a goal is one line of a table

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reliability.md"

SECTIONS = {
    "Runs": {
        "R1": "`kill -9` at 20 random places, then the same command with `--resume`: weights, buffers, optimizer, schedule "
        "and order bit-identical to a run that was not killed, for every method",
        "R2": "resumed from every step of two epochs: the same next batches and the same bits",
        "R3": "one seed, the same bits with 1, 2 and 4 decoding threads and in two fresh processes",
        "R4": "SIGTERM or SIGUSR1 to any process or to torchrun, in training, in validation and amid a save: one "
        "checkpoint of the step at hand, all gone within a step and 5 s, exit status 143, `status.json` says so",
        "R5": "SLURM: asked for the machine back, a job is queued exactly once, and loses and repeats no sample",
        "R6": "torchrun: three `kill -9` of alternating ranks, restarted by it: bit-identical, within 60 s",
        "R7": "1, 2, 4 and 1 processes at one global batch: the same order of samples, weights equal to 1e-12 in float64 "
        "and 1e-6 in float32",
        "R8": "`kill -9` at the moment a checkpoint takes its name, 30 times on either kind of file system: never an "
        "unreadable one",
        "R9": "a full disk: what was saved before is kept, training goes on, three failures in a row end it with 74",
        "R10": "the newest checkpoint cut, empty, or changed in one bit: the newest whole one is used, both are named; "
        "none is an error, never a fresh start",
        "R11": "NaN or infinity in the loss or a gradient stops the run before the weights change",
        "R12": "both kinds of collapse are flagged, and no healthy run is",
        "R13": "a read that hangs or a thread that dies ends the run, and the file is named",
        "R14": "a rank that raises, exits, dies or leaves out a collective (which is known at the time limit of the exchange, "
        "30 minutes by default and 8 s in the test): all are gone within 15 s",
        "R15": "a tracker never stops training",
    },
    "Several processes": {
        "P1": "W = 2 and 4 processes have the loss and every gradient of one to 1e-10 in float64 and 1e-5 in float32, for "
        "every method, BatchNorm included",
        "P2": "the test of P1 finds six bugs that were put there for it",
        "P3": "DDP, FSDP2 and one process have the same weights after six steps of AdamW to 1e-6; a checkpoint of two "
        "processes is read by 1, 2 and 4",
        "P4": "uneven data: as many batches in every process, no sample twice, never wrong numbers",
        "P5": "the first 20 losses of every method are those that are kept",
    },
    "Data": {
        "D1": "1,000 damaged image files in six formats: no process dies, each is named once, epochs are complete",
        "D2": "decompression bombs are refused by their headers, in little memory",
        "D3": "every EXIF orientation and every mode of Pillow: upright, and the right values",
        "D4": "hostile archives: no file outside their folder, and the error names the member",
        "X1": "an index of ten million images opens in under 10 s with under 1 GB of memory",
        "X2": "shards: order and position are resumed like everything else",
    },
    "Security": {
        "S1": "hostile files at every command that loads one: nothing in them is run, one clear error",
        "S2": "no line of the source can run what a file says",
        "S3": "500 damaged weights files: our own error only, in little memory",
        "S4": "every method's checkpoint holds tensors and plain data only",
        "S5": "one changed bit anywhere in a saved file is refused, and the file is named",
        "S6": "no secret of the environment is in any file of a run",
        "S7": "the dependencies' floors are those of their advisories, and all of them are locked by checksums",
    },
}
# what of a goal is not reached, and why
MISSED = {
    "R7": "1e-6 in float32, by Barlow Twins and others in which rounding grows: a step of AdamW is as long for a gradient of "
    "nothing but rounding as for any other",
    "P3": "1e-6 by Barlow Twins, whose loss does not depend on the scale of an embedding, so that gradients next to nothing "
    "are rounding, and AdamW makes steps of them",
}
GOALS = {name: text for goals in SECTIONS.values() for name, text in goals.items()}

UNPROVEN = """## What is not proven here

The tests run on CPUs, with gloo, on one machine. What that cannot show, and how to see it on yours:

| what | the command |
| --- | --- |
| NCCL, several GPUs | `torchrun --nproc_per_node 2 -m ssl_toolkit pretrain -c RECIPE ...` and the same with `--nproc_per_node 1` and twice the batch: `metrics.csv` of the two runs |
| several machines | the launch files in `configs/cluster/`, then as above |
| SLURM's own `scontrol requeue`, GPFS, NFS | `scancel --signal=USR1 JOB` on a run of minutes; its log says where it went on |
| bits on a GPU | `ssl-toolkit pretrain ...` twice, and `sha256sum` of both `backbone.safetensors`: cuDNN may choose other sums, then compare the losses |
| a power cut | `fsync` is called for file and folder; whether the disk keeps its word no test here can tell |
"""


class Collector:
    """A plugin of pytest that keeps the tests of goals and notes what became of them."""

    def __init__(self) -> None:
        self.goals: dict[str, list[str]] = {}
        self.seconds: dict[str, float] = defaultdict(float)
        self.outcomes: dict[str, str] = {}
        self.figures: dict[str, list[str]] = defaultdict(list)

    def pytest_collection_modifyitems(self, config: Any, items: list[Any]) -> None:
        for item in items:
            if names := [name for mark in item.iter_markers("goal") for name in mark.args]:
                self.goals[item.nodeid] = names
        config.hook.pytest_deselected(items=[item for item in items if item.nodeid not in self.goals])
        items[:] = [item for item in items if item.nodeid in self.goals]

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.seconds[report.nodeid] += report.duration
        if report.outcome != "passed" or report.when == "call":
            self.outcomes[report.nodeid] = report.outcome
        if report.when == "call":
            self.figures[report.nodeid] = [str(text) for name, text in report.user_properties if name == "reached"]

    def keep(self, file: Path) -> None:
        """Adds what became of tests that were run before and not now, and writes all of it."""
        mine = [self.goals, self.seconds, self.outcomes, self.figures]
        before = json.loads(file.read_text(encoding="utf-8")) if file.exists() else [{} for _ in mine]
        run_now = set(self.outcomes)
        for kept, now in zip(before, mine, strict=True):
            now.update({test: fact for test, fact in kept.items() if test not in run_now})
        file.write_text(json.dumps(mine), encoding="utf-8")

    def row(self, goal: str) -> str:
        """A line of the table."""
        tests = [test for test, names in self.goals.items() if goal in names]
        if not tests:
            return f"| {goal} | {GOALS[goal]} | **no test yet** | | |"
        not_run = [test for test in tests if test not in self.outcomes]
        failed = [test for test in tests if self.outcomes.get(test, "passed") != "passed"]
        functions = dict.fromkeys(test.split("[")[0] for test in tests)
        times = Counter(text for test in tests for text in self.figures[test])
        figures = [text if times[text] == 1 else f"{text} ({times[text]} times)" for text in times]
        if not_run:
            figures.insert(0, f"{len(not_run)} of {len(tests)} tests not run")
        if goal in MISSED:
            figures.append(f"**missed**: {MISSED[goal]}")
        if failed:
            figures.insert(0, f"**{len(failed)} of {len(tests)} tests fail**")
        if not figures:
            figures = [f"{len(tests)} tests pass" if len(tests) > 1 else "its test passes"]
        links = "<br>".join(f"[{name.rpartition('::')[2]}](../{name.split('::')[0]})" for name in functions)
        seconds = sum(self.seconds[test] for test in tests)
        return f"| {goal} | {GOALS[goal]} | {'<br>'.join(figures)} | {links} | {seconds:.0f} |"


def page(collected: Collector) -> str:
    """The page's text."""
    seconds = sum(collected.seconds[test] for test in collected.goals)
    lines = [
        "# Reliability",
        "",
        "What is promised of every run, and the figure that its tests reached. Every method and component is found by looking, so "
        "that a new one cannot be left out. This page is written by",
        "",
        "```sh",
        "python tests/reliability_page.py",
        "```",
        "",
        f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores ({platform.machine()}), Python {platform.python_version()}, "
        f"torch {_version('torch')}, lightning {_version('lightning')}: {len(collected.goals)} tests, "
        f"{seconds / 60:.0f} minutes.",
        "",
    ]
    for title, goals in SECTIONS.items():
        lines += [f"## {title}", "", "| | goal | reached | tests | seconds |", "| --- | --- | --- | --- | --- |"]
        lines += [*(collected.row(goal) for goal in goals), ""]
    return "\n".join(lines) + "\n" + UNPROVEN


def _version(package: str) -> str:
    import importlib.metadata

    return importlib.metadata.version(package).split("+")[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=PAGE, help="the page")
    parser.add_argument("--select", default="", help="pytest's -m: some of the tests only, such as 'not slow'")
    parser.add_argument("--keep", type=Path, help="a file that keeps what the tests did, to make the page in parts")
    parser.add_argument("tests", nargs="*", default=["tests"], help="files or tests, as pytest takes them")
    args = parser.parse_args()
    collected = Collector()
    os.chdir(ROOT)
    status = pytest.main(["-q", "-n", "0", "-m", args.select, *args.tests], plugins=[collected])
    if args.keep:
        collected.keep(args.keep)
    args.out.write_text(page(collected), encoding="utf-8")
    sys.exit(status)


if __name__ == "__main__":
    main()
