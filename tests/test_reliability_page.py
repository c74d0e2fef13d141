"""docs/reliability.md: what it says of the tests is what they did, and it is not older than its goals."""

import ast
import re
from pathlib import Path

import pytest

from reliability_page import GOALS, PAGE, ROOT, Collector

HERE = Path(__file__).parent

EXAMPLE = """
import pytest

@pytest.mark.goal("R1")
@pytest.mark.parametrize("number", [1, 2, 2])
def test_reaches(number, record_property):
    record_property("reached", f"{number} of 2")

@pytest.mark.goal("R2")
def test_says_nothing():
    pass

@pytest.mark.goal("R2", "R3")
def test_fails():
    assert False

def test_of_no_goal():
    assert False
"""


def test_the_rows_say_what_the_tests_did(tmp_path):
    (tmp_path / "test_example.py").write_text(EXAMPLE)
    collected = Collector()
    options = ["-q", "-c", "/dev/null", "-o", "markers=goal", "-p", "no:cacheprovider"]
    pytest.main([*options, str(tmp_path)], plugins=[collected])
    reached = {name: collected.row(name).split("|")[3].strip() for name in ("R1", "R2", "R3", "R4")}
    assert reached == {
        "R1": "1 of 2<br>2 of 2 (2 times)",
        "R2": "**1 of 2 tests fail**",
        "R3": "**1 of 1 tests fail**",
        "R4": "**no test yet**",
    }
    assert collected.row("R1").count("test_reaches") == 1
    collected.outcomes = {test: "passed" for test in collected.outcomes if "[1]" in test}
    assert "| 2 of 3 tests not run<br>1 of 2<br>2 of 2 (2 times) |" in collected.row("R1")
    assert "test_of_no_goal" not in "".join(collected.goals)


def goals_of_tests():
    """Pairs of a goal and the test function that is marked with it."""
    for file in sorted(HERE.rglob("test_*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            for mark in getattr(node, "decorator_list", []):
                if ast.unparse(mark).startswith("pytest.mark.goal("):
                    yield from ((each.value, file.relative_to(ROOT), node.name) for each in mark.args)


def test_the_page_has_every_goal_and_every_test_of_one():
    page = PAGE.read_text(encoding="utf-8")
    for name, text in GOALS.items():
        assert f"| {name} | {text} |" in page, f"{name}: run python tests/reliability_page.py"
    for goal, file, function in goals_of_tests():
        row = re.search(rf"^\| {goal} \|.*$", page, re.MULTILINE)
        assert row, f"{function} is marked with {goal}, which is no goal"
        assert f"[{function}](../{file.as_posix()})" in row.group(), f"{goal}: run python tests/reliability_page.py"
