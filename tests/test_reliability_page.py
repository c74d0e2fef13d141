"""docs/reliability.md: what it says of the tests is what they did, and it is not older than its goals."""

import pytest
from reliability_page import Collector

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
    pytest.main(["-q", "-c", "/dev/null", "-p", "no:cacheprovider", str(tmp_path)], plugins=[collected])
    reached = {name: collected.row(name).split("|")[3].strip() for name in ("R1", "R2", "R3", "R4")}
    assert reached == {
        "R1": "1 of 2<br>2 of 2",
        "R2": "**1 of 2 tests fail**",
        "R3": "**1 of 1 tests fail**",
        "R4": "**no test yet**",
    }
    assert collected.row("R1").count("test_reaches") == 1
    assert "test_of_no_goal" not in "".join(collected.goals)
