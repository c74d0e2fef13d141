"""Runs every test there is, and writes what it proved: docs/reliability.md, its details, and the stamp of the gate.

    python tests/nightly.py

takes about an hour on two cores. One that was broken off, or that failed and was mended, goes on with `--resume`: what
passed is not run again, unless a file that it depends on has changed since. A guarantee whose test fails is a row that says so. A test notes its figure by
``reached("...")``. The stamp, tests/nightly.json, holds a hash of the source files of each group of tests that passed
(`tests/helpers/source_groups.py`), so that ``pytest -m slow --changed`` runs the groups that have changed since.
"""

# ruff: noqa: E501 - a guarantee is one line of a table

from __future__ import annotations

import argparse
import functools
import importlib.metadata
import json
import os
import platform
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "helpers")]

import source_groups  # noqa: E402

PAGE = ROOT / "docs" / "reliability.md"
DETAILS = ROOT / "docs" / "reliability_details.md"
FOLDER = ROOT / "build" / "nightly"
LOG = FOLDER / "results.jsonl"
OWN = ("tests/test_nightly.py", "tests/test_docs.py")  # they read the pages that are written here
MOST_SECONDS = 70  # of what proves a method
MOST_CHARACTERS = 120  # of a cell


class Guarantee(NamedTuple):
    """What users may rely on.

    Attributes:
        short: One cell of a table.
        whole: With its limits; the same as ``short`` if empty.
    """

    short: str
    whole: str = ""


SECTIONS = {
    "Runs": {
        "R1": Guarantee(
            "`kill -9` at 20 random places, then `--resume`: every bit as in a run that was not killed",
            "`kill -9` at 20 random places, then the same command with `--resume`: weights, buffers, optimizer, schedule "
            "and order bit-identical to a run that was not killed, for every method",
        ),
        "R2": Guarantee("resumed from every step of two epochs: the same next batches and the same bits"),
        "R3": Guarantee("one seed, the same bits with 1, 2 and 4 decoding threads and in two fresh processes"),
        "R4": Guarantee(
            "SIGTERM, SIGUSR1 or Ctrl-C to any process: the step at hand is saved, and all leave with 143 (130)",
            "SIGTERM or SIGUSR1 to any process or to torchrun, in training, in validation and during a save: one "
            "checkpoint of the step at hand, all gone within a step and 5 s, exit status 143, `status.json` says so; "
            "Ctrl-C likewise, with status 130, and a second one ends at once",
        ),
        "R5": Guarantee(
            "SLURM: asked for the machine back, a job is queued exactly once, and loses and repeats no sample"
        ),
        "R6": Guarantee("torchrun: three `kill -9` of alternating ranks, restarted by it: bit-identical, within 60 s"),
        "R7": Guarantee(
            "1, 2, 4 and 1 processes at one global batch: the same order, and weights equal to 1e-12",
            "1, 2, 4 and 1 processes at one global batch: the same order of samples, weights equal to 1e-12 in float64 "
            "and 1e-6 in float32",
        ),
        "R8": Guarantee(
            "`kill -9` at the moment a checkpoint takes its name: never an unreadable one",
            "`kill -9` at the moment a checkpoint takes its name, 30 times on either kind of file system: never an "
            "unreadable one",
        ),
        "R9": Guarantee(
            "a full disk: what was saved before is kept, and training goes on",
            "a full disk: what was saved before is kept, training goes on, three failures in a row end it with 74",
        ),
        "R10": Guarantee(
            "the newest checkpoint is damaged: the newest whole one is used, and both are named",
            "the newest checkpoint cut, empty, or changed in one bit: the newest whole one is used, both are named; "
            "none is an error, never a fresh start",
        ),
        "R11": Guarantee("NaN or infinity in the loss or a gradient stops the run before the weights change"),
        "R12": Guarantee("both kinds of collapse are flagged, and no healthy run is"),
        "R13": Guarantee("a read that hangs or a thread that dies ends the run, and the file is named"),
        "R14": Guarantee(
            "a rank that raises, exits, dies or leaves out a collective: all are gone within 15 s",
            "a rank that raises, exits, dies or leaves out a collective (which is known at the time limit of the "
            "exchange, 30 minutes by default and 8 s in the test): all are gone within 15 s",
        ),
        "R15": Guarantee("a tracker never stops training"),
        "R16": Guarantee(
            "what a resumed run changes takes effect and is said, or is refused before the run is touched",
            "settings that a resumed run changes take effect, are said and are kept with their step, or are refused; so "
            "are images that are gone or have changed; the run is then as it was",
        ),
        "R17": Guarantee("two runs never write into one folder, however they are started"),
    },
    "Several processes": {
        "P1": Guarantee(
            "2 and 4 processes have the loss and every gradient of one, for every method",
            "W = 2 processes have the loss and every gradient of one to 1e-10 in float64 and 2e-5 in float32, for "
            "every method, BatchNorm included; so have W = 4",
        ),
        "P2": Guarantee("the test of P1 finds each bug that was put there for it"),
        "P3": Guarantee(
            "DDP, FSDP2 and one process have the same weights; their checkpoints fit 1, 2 and 4 processes",
            "DDP, FSDP2 and one process have the same weights after six steps of AdamW to 1e-6; a checkpoint of two "
            "processes is read by 1, 2 and 4",
        ),
        "P4": Guarantee("uneven data: as many batches in every process, no sample twice, never wrong numbers"),
        "P5": Guarantee("the first losses of every method are those that are kept, on every processor"),
        "P6": Guarantee(
            "every figure that 2 or 3 processes write is that of one, also where they do not divide the images",
            "every figure that a run of 3 processes writes (training, validation, test, kNN; of SimCLR also 2) is that of "
            "one process to 1e-5, for every method, also where they do not divide the images",
        ),
    },
    "Data": {
        "D1": Guarantee(
            "1,000 damaged image files in nine formats: no process dies, and each is named once",
            "1,000 damaged image files in nine formats: no process dies, each is named once, epochs are complete",
        ),
        "D2": Guarantee("decompression bombs are refused by their headers, in little memory"),
        "D3": Guarantee("every EXIF orientation and every mode of Pillow: upright, and the right values"),
        "D4": Guarantee("hostile archives: no file outside their folder, and the error names the member"),
        "D5": Guarantee("more than 8 bits: one range for all files, of the training images; one pixel does not decide"),
        "D6": Guarantee("copies of an image are on one side of a split, and a known image stays on its side"),
        "X1": Guarantee("an index of ten million images opens in under 10 s with under 1 GB of memory"),
        "X2": Guarantee("shards: order and position are resumed like everything else"),
    },
    "Security": {
        "S1": Guarantee("hostile files at every command that loads one: nothing in them is run, one clear error"),
        "S2": Guarantee("no line of the source can run what a file says"),
        "S3": Guarantee("500 damaged weights files: our own error only, in little memory"),
        "S4": Guarantee("every method's checkpoint holds tensors and plain data only"),
        "S5": Guarantee("one changed bit anywhere in a saved file is refused, and the file is named"),
        "S6": Guarantee("no secret of the environment is in any file of a run"),
        "S7": Guarantee("the dependencies' floors are those of their advisories, and all are locked by checksums"),
    },
}
# what of a guarantee is not reached, and why
MISSED = {
    "R7": "1e-6 in float32, by Barlow Twins and others in which rounding grows: a step of AdamW is as long for a gradient of "
    "nothing but rounding as for any other",
    "P3": "1e-6 by Barlow Twins, BYOL, MoCo v2 and the Transformer head, whose losses do not depend on the scale of an embedding or "
    "on a key's bias, so that gradients next to nothing are rounding, and AdamW makes steps of them",
}
GUARANTEES = {name: each for section in SECTIONS.values() for name, each in section.items()}

UNPROVEN = """## What is not proven here

The tests run on CPUs, with gloo, on one machine. What that cannot show, and how to see it on yours:

* **NCCL, several GPUs**: `torchrun --nproc_per_node 2 -m ssl_toolkit pretrain -c RECIPE ...` and the same with
  `--nproc_per_node 1` and twice the batch; compare `metrics.csv` of the two runs.
* **Several machines**: the launch files in `configs/cluster/`, then as above.
* **SLURM's own `scontrol requeue`, GPFS, NFS**: `scancel --signal=USR1 JOB` on a run of minutes; its log says where it
  went on.
* **Bits on a GPU**: `ssl-toolkit pretrain ...` twice, and `sha256sum` of both `backbone.safetensors`. cuDNN may choose
  other sums; then compare the losses.
* **A power cut**: `fsync` is called for file and folder. Whether the disk keeps its word no test here can tell.
"""


@functools.cache
def _digest(group: str, file: str) -> str:
    """Of what the tests of a file depend on, as it was when the run began."""
    return source_groups.digest(group, file)


class Collector:
    """A plugin of pytest that notes what became of each test, whichever process ran it."""

    def __init__(self, log: Path | None = None) -> None:
        self.log = log
        self.seconds: dict[str, float] = defaultdict(float)
        self.outcomes: dict[str, str] = {}
        self.facts: dict[str, dict[str, Any]] = {}  # what `conftest.py` and the test itself say of it

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.seconds[report.nodeid] += report.duration
        if report.outcome != "passed" or report.when == "call":
            self.outcomes[report.nodeid] = report.outcome
        self.facts.setdefault(report.nodeid, {"reached": []})
        if report.when == "call":
            reached = [str(value) for name, value in report.user_properties if name == "reached"]
            self.facts[report.nodeid] = {**dict(report.user_properties), "reached": reached}
        if report.when == "teardown" and self.log:
            self._write(report.nodeid)

    def take_over(self) -> list[str]:
        """Takes the results of a run that was broken off for its own, and names their tests.

        Only tests that passed count, and only those of which no file has changed since.
        """
        assert self.log
        lines = self.log.read_text(encoding="utf-8").splitlines(keepends=True) if self.log.exists() else []
        found = [json.loads(line) for line in lines if line.endswith("\n")]  # the last may be cut off
        self.log.unlink(missing_ok=True)
        for each in found:
            test = each["test"]
            if each["outcome"] == "passed" and each["hash"] == _digest(each["facts"]["group"], test.split("::")[0]):
                self.seconds[test], self.outcomes[test], self.facts[test] = each["seconds"], "passed", each["facts"]
                self._write(test)
        return list(self.outcomes)

    def _write(self, test: str) -> None:
        assert self.log
        facts = self.facts[test]
        result = {"test": test, "outcome": self.outcomes.get(test), "seconds": self.seconds[test], "facts": facts}
        hashed = _digest(facts.get("group", source_groups.CORE), test.split("::")[0])
        with self.log.open("a", encoding="utf-8") as log:
            log.write(json.dumps({**result, "hash": hashed}) + "\n")

    def tests_of(self, guarantee: str) -> list[str]:
        """The tests of a guarantee."""
        return [test for test, facts in self.facts.items() if guarantee in facts.get("guarantees", ())]

    def figures(self, guarantee: str) -> list[str]:
        """What the tests of a guarantee reached, each figure once, with how often it was reached."""
        times = Counter(text for test in self.tests_of(guarantee) for text in self.facts[test]["reached"])
        return [text if times[text] == 1 else f"{text} ({times[text]} times)" for text in times]

    def verdict(self, guarantee: str) -> str:
        """How many tests of a guarantee pass."""
        tests = self.tests_of(guarantee)
        if not tests:
            return "**no test was run**"
        failed = sum(self.outcomes.get(test) != "passed" for test in tests)
        if failed:
            return f"**{failed} of {len(tests)} tests fail**"
        return f"{len(tests)} tests pass" if len(tests) > 1 else "its test passes"

    def groups(self) -> dict[str, dict[str, Any]]:
        """Of each group of tests whether all passed, and the seconds of those that the gate runs where it changed."""
        found: dict[str, dict[str, Any]] = {}
        for test, facts in self.facts.items():
            group = found.setdefault(facts.get("group", source_groups.CORE), {"passed": True, "seconds": 0.0})
            group["passed"] &= self.outcomes.get(test) in ("passed", "skipped")  # the gate would skip it, too
            group["seconds"] += 0.0 if facts.get("nightly") else self.seconds[test]
        return found


def page(collected: Collector) -> str:
    """The text of docs/reliability.md."""
    seconds = sum(collected.seconds.values())
    count = sum(bool(facts.get("guarantees")) for facts in collected.facts.values())
    lines = [
        "# Reliability",
        "",
        "What you can rely on in every run, with the tests that prove it. Tests find methods and components by looking, so a",
        f"new one cannot be left out. Figures, limits and names of the tests: [{DETAILS.stem}]({DETAILS.name}).",
        "",
        f"{circumstances()}: {len(collected.outcomes)} tests, {count} of them of a guarantee; {seconds / 60:.0f} minutes of",
        "one core. `python tests/nightly.py` runs them and writes this page.",
        "",
    ]
    for title, section in SECTIONS.items():
        lines += [f"## {title}", "", "| | guarantee | tests |", "| --- | --- | --- |"]
        for name, guarantee in section.items():
            missed = "; a limit is **missed**" if name in MISSED else ""
            lines.append(
                f"| [{name}]({DETAILS.name}#{name.lower()}) | {guarantee.short} | {collected.verdict(name)}{missed} |"
            )
        lines.append("")
    return "\n".join(lines) + "\n" + UNPROVEN


def details(collected: Collector) -> str:
    """The text of docs/reliability_details.md."""
    lines = [
        "# Reliability: figures",
        "",
        "What the tests of each guarantee in [reliability.md](reliability.md) reached, and which they are. Written by",
        "`python tests/nightly.py`.",
        "",
        f"{circumstances()}.",
        "",
    ]
    for name, guarantee in GUARANTEES.items():
        tests = collected.tests_of(name)
        functions = dict.fromkeys(test.split("[")[0] for test in tests)
        seconds = sum(collected.seconds[test] for test in tests)
        lines += [f"## {name}", "", f"{capitalized(guarantee.whole or guarantee.short)}.", ""]
        lines += [f"{capitalized(collected.verdict(name))}, in {seconds:.0f} s.", ""]
        if name in MISSED:
            lines += [f"**Missed**: {MISSED[name]}.", ""]
        lines += [f"* {figure}" for figure in collected.figures(name)]
        lines += ["", "Tests:", ""] if tests else []
        lines += [f"* [{each.rpartition('::')[2]}](../{each.split('::')[0]})" for each in functions]
        lines.append("")
    lines += ["## Seconds for each method", "", "What the gate runs for a method that has changed, on one core.", ""]
    lines += ["| method | seconds |", "| --- | --- |"]
    groups = collected.groups()
    lines += [f"| {name} | {groups[name]['seconds']:.0f} |" for name in sorted(groups) if name != source_groups.CORE]
    return "\n".join(lines) + "\n"


def capitalized(text: str) -> str:
    """With a capital at first, but for code and emphasis."""
    return text[:1].upper() + text[1:]


def circumstances() -> str:
    """When, where and with what the tests were run."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name).split('+')[0]}" for name in ("torch", "lightning"))
    here = f"{os.cpu_count()} cores ({platform.machine()}), Python {platform.python_version()}"
    return f"{time.strftime('%Y-%m-%d')}, {here}, {versions}"


def write_stamp(collected: Collector, hashes: dict[str, str], tests: dict[str, list[str]]) -> None:
    """Writes the groups of which every test passed and no file changed during the tests; the others have to be run again.

    Args:
        collected: What became of the tests.
        hashes: Of the groups' files when the tests began.
        tests: The names of all tests of each group.
    """
    groups = collected.groups()
    proven = {
        name: {"hash": hashed, "seconds": round(groups[name]["seconds"], 1)}
        for name, hashed in hashes.items()
        if name in groups
        and groups[name]["passed"]
        and source_groups.digest(name) == hashed
        and set(tests[name]) <= set(collected.outcomes)
    }
    content = {"command": "python tests/nightly.py", "when": circumstances(), "groups": proven}
    source_groups.STAMP.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    for name in sorted(set(hashes) - set(proven)):
        print(
            f"{name}: not all of its tests ran and passed, or its files changed during the run; it is left out of the stamp"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--processes", default="2", help="pytest's -n")
    parser.add_argument("--resume", action="store_true", help="go on with a run that was broken off")
    args = parser.parse_args()
    os.chdir(ROOT)
    hashes = {name: source_groups.digest(name) for name in source_groups.groups()}
    collected = Collector(LOG)
    FOLDER.mkdir(parents=True, exist_ok=True)
    if not args.resume:
        LOG.unlink(missing_ok=True)
    done = collected.take_over()
    (FOLDER / "done.json").write_text(json.dumps(done), encoding="utf-8")
    os.environ["NIGHTLY"] = str(FOLDER)  # for conftest.py, in all processes
    # this process has imported what pytest would like to rewrite; the tests run in others
    options = ["-q", "-m", "", "-W", "ignore::pytest.PytestAssertRewriteWarning"]
    status = pytest.main(
        [*options, "-n", args.processes, "tests", *(f"--deselect={each}" for each in OWN)], plugins=[collected]
    )
    if status == pytest.ExitCode.NO_TESTS_COLLECTED and done:
        status = pytest.ExitCode.OK  # the run before has all of them
    tests = json.loads((FOLDER / "tests.json").read_text(encoding="utf-8"))
    if status == pytest.ExitCode.INTERRUPTED:
        write_stamp(collected, hashes, tests)
        sys.exit("broken off, and no page written; go on with: python tests/nightly.py --resume")
    PAGE.write_text(page(collected), encoding="utf-8")
    DETAILS.write_text(details(collected), encoding="utf-8")
    # of the pages that have just been written
    status = pytest.main([*options, "-n", "1", *OWN], plugins=[collected]) or status
    write_stamp(collected, hashes, tests)
    skipped = [test for test, outcome in collected.outcomes.items() if outcome == "skipped"]
    print(f"skipped: {', '.join(skipped) or 'none'}")
    for name, group in sorted(collected.groups().items()):
        if name != source_groups.CORE and group["seconds"] > MOST_SECONDS:
            print(f"{name}: its tests take {group['seconds']:.0f} s, more than {MOST_SECONDS} s")
    sys.exit(status)


if __name__ == "__main__":
    main()
