"""Mutation testing: which bugs are made of a source, which tests are asked, and what is said of each bug."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from mutants import mutants
from nearest_tests import Imports

SOURCE = b'''"""Says 1 + 1; stays."""
from typing import Literal
def area(size: tuple[int, Literal[3]], scale=2, closed=True) -> "1 < 2":
    """More than 0 and 1."""
    if size[0] < 0 or not closed:
        raise ValueError(f"{size[0] + 1} is not 0")
    print("it is", 1)
    total = max(0, size[0] * scale, key=swap(0, 0), strict=True)  # \xc3\xa4
    self.total = total
    self.log("n\xc3\xa4me", -total, when=scale)
    return round(total, scale) if closed else (total, size)
'''
PLANTED = {
    ("off by one", "2", "3"), ("True / False", "True", "False"), ("and / or", "size[0] < 0 or not closed",
    "(size[0] < 0 and (not closed))"), ("comparison", "size[0] < 0", "(size[0] <= 0)"), ("off by one", "0", "1"),
    ("sign or negation", "not closed", "closed"), ("min / max", "max", "min"), ("arithmetic", "size[0] * scale",
    "(size[0] / scale)"), ("statement left out", "self.total = total", "pass"), ("sign or negation", "-total", "total"),
    ("statement left out", 'self.log("n\u00e4me", -total, when=scale)', "pass"),
    ("swapped", 'self.log("n\u00e4me", -total, when=scale)', "self.log(-total, 'n\u00e4me', when=scale)"),
    ("argument left out", 'self.log("n\u00e4me", -total, when=scale)', "self.log('n\u00e4me', -total)"),
    ("swapped", "round(total, scale) if closed else (total, size)",
    "((total, size) if closed else round(total, scale))"),
    ("swapped", "round(total, scale)", "round(scale, total)"), ("call left out", "round(total, scale)", "total"),
    ("swapped", "(total, size)", "(size, total)"),
    ("argument left out", "max(0, size[0] * scale, key=swap(0, 0), strict=True)",
    "max(0, size[0] * scale, strict=True)"),
    ("statement left out", 'raise ValueError(f"{size[0] + 1} is not 0")', "pass"),
}  # fmt: skip


def test_mutants_are_small_bugs_of_code_and_of_nothing_else():
    assert {(each.kind, each.before, each.after) for each in mutants("area.py", SOURCE)} == PLANTED


def test_each_mutant_changes_its_line_and_no_other():
    before = SOURCE.splitlines()
    for mutant in mutants("area.py", SOURCE):
        after = mutant.applied(SOURCE)
        assert ast.dump(ast.parse(after)) != ast.dump(ast.parse(SOURCE))
        assert [number for number, pair in enumerate(zip(before, after.splitlines(), strict=True), 1)
                if pair[0] != pair[1]] == [mutant.line]  # fmt: skip
        with pytest.raises(ValueError, match=f"area.py:{mutant.line} does not hold .*; it has changed since"):
            mutant.applied(SOURCE.replace(mutant.before.encode(), b"changed"))


FILES = {
    "core/__init__.py": "from core.sums import add\n",
    "core/sums.py": "def add(x, y):\n    return x + y\n",
    "core/data/__init__.py": "",
    "core/data/loops.py": (
        "from core import add\n"
        "def count(n):\n    done = 0\n    while done < n:\n        done = add(done, 1)\n    return done\n"
        "def limit(n):\n    return min(n, 9)\n"
    ),
    "tests/helpers/asking.py": "from core.data.loops import count\n",
    "tests/core/data/test_loops.py": (
        "from core.data.loops import count, limit\n"
        "def test_count():\n    assert count(2) == 2\n"
        "def test_limit():\n    assert limit(3) == 3\n"
    ),
    "tests/core/test_all.py": "from core import add\ndef test_add():\n    assert add(1, 2) == 3\n",
    "tests/test_command.py": "def test_it():\n    import asking\n",
    "tests/test_other.py": "def test_it():\n    pass\n",
}


@pytest.fixture
def project(tmp_path):
    root = tmp_path / "project"
    for name, text in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    subprocess.run(["git", "init", "--quiet", str(root)], check=True)
    return root


def test_the_nearest_tests_mirror_the_module_and_then_import_it(project):
    imports = Imports(project)
    assert imports.tests("core/data/loops.py") == ["tests/core/data/test_loops.py", "tests/test_command.py"]
    assert imports.tests("core/sums.py") == [
        "tests/core/test_all.py", "tests/core/data/test_loops.py", "tests/test_command.py"
    ]  # fmt: skip
    assert imports.all_tests()[-1] == "tests/test_other.py"


PROGRAM = """
import argparse, json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import mutation, pytest
mutation.GRACE = 1.0
args = dict(folders=["core/data"], number=99, seed=0, seconds=2.0, again=False, whole=False) | json.loads(sys.argv[3])
mutation.run(Path(sys.argv[2]), argparse.Namespace(**args, results=Path(sys.argv[2], "..", "results.jsonl")))
"""


def plant(project, **options):
    command = [sys.executable, "-c", PROGRAM, str(Path(__file__).parent), str(project), json.dumps(options)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
def test_survivors_are_named_and_a_run_goes_on(project):
    said = plant(project, number=3)
    assert said.splitlines()[-1].startswith("3 planted: ")
    results = project.parent / "results.jsonl"
    first = results.read_text().splitlines()
    said = plant(project)
    assert results.read_text().splitlines()[: len(first)] == first, "what was found is not planted again"
    assert " survived core/data/loops.py:8 \n    - 9\n    + 10\n" in said
    assert "found core/data/loops.py:8 tests/core/data/test_loops.py::test_limit" in said
    assert "stopped core/data/loops.py:5" in said, "without its call the loop does not end"
    assert all((project / name).read_text() == text for name, text in FILES.items())
    # a test that sees one more
    test = project / "tests/core/data/test_loops.py"
    test.write_text(f"{test.read_text()}def test_largest():\n    assert limit(99) == 9\n")
    assert "survived core/data/loops.py:8 \n    - 9" in plant(project)
    assert "survived core/data/loops.py:8 \n    - 9" not in plant(project, again=True)
