"""Mutation testing: plants small bugs one at a time, and names those that no quick test sees.

    python tests/mutation.py --number 100 --seed 0 --results mutants.jsonl

The bugs are planted in a copy of the project, never in the working tree. For each the test files that are nearest to
its module run until one test fails: those that mirror the module first, then those that import it, directly or through
others, as long as they take `--seconds` together without the bug. What takes five times as long is stopped and counts
as found. A survivor is one of three: nobody can see what it changes, it does not matter (speed, a message), or it is a
hole in the tests.

All results are kept in a file, a line each. The same command goes on where it was stopped; `--again` runs the survivors
of the file again after tests were added, and `--whole` takes the whole default suite for them. The same seed gives the
same bugs. Each is run by a fork of this process, which has imported the libraries: libraries made for this (mutmut,
cosmic-ray) start Python for each, which takes longer than the tests.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import math
import os
import random
import signal
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
# pytest's own path: in this folder ssl_toolkit would be the tests of it
sys.path[:] = [str(ROOT / "tests" / "helpers"), *(each for each in sys.path if each != str(ROOT / "tests"))]

from mutants import Mutant, mutants  # noqa: E402
from nearest_tests import Imports  # noqa: E402
from project_copy import Outcome, ProjectCopy  # noqa: E402

FOLDERS = ["ssl_toolkit/data", "ssl_toolkit/evaluation", "ssl_toolkit/callbacks", "pretext", "downstream"]
LIBRARIES = [
    "torch", "torchvision", "lightning.pytorch", "timm", "PIL.Image", "numpy", "pytest", "beartype", "jaxtyping",
    "yaml", "rich.console", "matplotlib.figure", "jsonargparse", "safetensors.torch", "fsspec", "filelock", "wandb",
]  # fmt: skip
MOST_FILES = 8  # of tests that are looked at for a mutant
MOST_SECONDS = 300.0  # of a file of tests without a bug
GRACE = 30.0  # seconds that a mutant may always take


class Results:
    """The file of results, a JSON text for each line: of mutants, and of files of tests without a bug.

    Args:
        file: Where; what it holds already counts.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self.of: dict[str, Outcome] = {}
        for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else []:
            with contextlib.suppress(ValueError):  # the last one may be cut off
                entry = json.loads(line)
                if entry["what"].startswith("tests/") and entry["outcome"] == "found":
                    continue  # failed without a bug; it may be mended by now
                self.of[entry["what"]] = Outcome(entry["outcome"], entry["by"], entry["seconds"])

    def add(self, what: str, outcome: Outcome) -> Outcome:
        """Notes an outcome, which replaces an earlier one."""
        self.of[what] = outcome
        entry = {"what": what, "outcome": outcome.name, "by": outcome.by, "seconds": round(outcome.seconds, 1)}
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
        return outcome


def choose(found: dict[str, list[Mutant]], number: int, seed: int) -> list[Mutant]:
    """Some mutants by chance: in turns one of each folder, of a random kind among those that it has.

    Args:
        found: The mutants of each folder.
        number: How many, at most.
        seed: Of the choice.
    """
    chance = random.Random(seed)
    left: dict[str, dict[str, list[Mutant]]] = {}
    for folder, of_folder in found.items():
        for mutant in of_folder:
            left.setdefault(folder, {}).setdefault(mutant.kind, []).append(mutant)
    chosen: list[Mutant] = []
    while left and len(chosen) < number:
        for folder, kinds in list(left.items()):
            kind = chance.choice(sorted(kinds))
            chosen.append(kinds[kind].pop(chance.randrange(len(kinds[kind]))))
            if not kinds[kind]:
                del kinds[kind]
            if not kinds:
                del left[folder]
    return chosen[:number]


def select_tests(project: ProjectCopy, files: list[str], results: Results, seconds: float) -> tuple[list[str], float]:
    """The first of some test files that together take so long, and how long they take without a bug.

    Raises:
        SystemExit: None of them passes without a bug.
    """
    chosen, total = [], 0.0
    for file in files:
        limit, outcome = min(3 * seconds, MOST_SECONDS), results.of.get(file)
        if outcome is None or (outcome.name == "stopped" and outcome.seconds < limit):
            outcome = results.add(file, project.run([file], limit))
            if outcome.name in ("found", "stopped"):
                why = f"it fails without a bug ({outcome.by})" if outcome.by else f"it takes more than {limit:.0f} s"
                print(f"{file} is left out: {why}", flush=True)
        if outcome.name == "survived" and (not chosen or total + outcome.seconds <= seconds):
            chosen.append(file)
            total += outcome.seconds
    if not chosen:
        raise SystemExit(f"no test passes without a bug of {', '.join(files) or 'those that import this module'}")
    return chosen, total


def run(root: Path, args: argparse.Namespace) -> Counter[str]:
    """Plants the mutants, says which survive, and counts the outcomes.

    Args:
        root: Of the project.
        args: Of the command line.
    """
    results, outcomes = Results(args.results), Counter()
    with tempfile.TemporaryDirectory() as folder:
        project = ProjectCopy(root, Path(folder))
        imports = Imports(project.root)
        found: dict[str, list[Mutant]] = {}
        for part in args.folders:
            place = project.root / part
            for file in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
                name = file.relative_to(project.root).as_posix()
                found.setdefault(part, []).extend(mutants(name, file.read_bytes()))
        chosen = choose(found, args.number, args.seed)
        for number, mutant in enumerate(chosen, start=1):
            what = f"{mutant.file}:{mutant.line}: {mutant.before} -> {mutant.after} ({mutant.start})"
            outcome = results.of.get(what)
            if outcome is None or (args.again and outcome.name == "survived"):
                outcome = results.add(what, _plant(mutant, project, imports, results, args))
            outcomes[outcome.name] += 1
            print(f"{number}/{len(chosen)} {outcome.name} {mutant.file}:{mutant.line} {outcome.by}", flush=True)
            if outcome.name == "survived":
                print(f"    - {mutant.before}\n    + {mutant.after}", flush=True)
    print(f"{len(chosen)} planted: " + ", ".join(f"{count} {name}" for name, count in sorted(outcomes.items())))
    return outcomes


def _plant(mutant: Mutant, project: ProjectCopy, imports: Imports, results: Results, args: Any) -> Outcome:
    tests = imports.tests(mutant.file)
    others = [test for test in imports.all_tests() if test not in tests]
    tests = [*tests, *others] if args.whole else tests[:MOST_FILES]
    selected, seconds = select_tests(project, tests, results, math.inf if args.whole else args.seconds)
    file = project.root / mutant.file
    source = file.read_bytes()
    file.write_bytes(mutant.applied(source))
    try:
        return project.run(selected, GRACE + 5 * seconds)
    finally:
        file.write_bytes(source)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", default=FOLDERS, help="folders or files whose code is changed")
    parser.add_argument("--number", type=int, default=100, help="mutants, at most")
    parser.add_argument("--seed", type=int, default=0, help="of the choice")
    parser.add_argument("--results", type=Path, default=Path("mutants.jsonl"), help="file that is continued")
    parser.add_argument("--seconds", type=float, default=20, help="of tests for each mutant, without the bug")
    parser.add_argument("--again", action="store_true", help="plants the survivors of the file again")
    parser.add_argument("--whole", action="store_true", help="takes the whole default suite for each")
    args = parser.parse_args()
    for folder in args.folders:
        if not (ROOT / folder).exists():
            raise SystemExit(f"{folder} is not in the project; expected folders or files such as {FOLDERS[0]}")
    os.environ["OMP_NUM_THREADS"] = "1"
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    for library in LIBRARIES:
        importlib.import_module(library)
    return int(run(ROOT, args)["survived"] > 0)


if __name__ == "__main__":
    sys.exit(main())
