"""docs/reliability.md and the stamp: they say what the tests did, and are not older than the guarantees."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import nightly
import source_groups
from nightly import DETAILS, GUARANTEES, MOST_CHARACTERS, PAGE, ROOT, Collector

HERE = Path(__file__).parent

CONFTEST = """
def pytest_collection_modifyitems(items):
    for item in items:
        names = [name for mark in item.iter_markers("guarantee") for name in mark.args]
        item.user_properties += [("group", "core"), ("guarantees", names), ("nightly", False)]
"""
EXAMPLE = """
import pytest

@pytest.mark.guarantee("R1")
@pytest.mark.parametrize("number", [1, 2, 2])
def test_reaches(number, record_property):
    record_property("reached", f"{number} of 2")

@pytest.mark.guarantee("R2")
def test_says_nothing():
    pass

@pytest.mark.guarantee("R2", "R3")
def test_fails():
    assert False

def test_of_no_guarantee():
    assert False
"""


@pytest.fixture(scope="module")
def collected(tmp_path_factory):
    folder = tmp_path_factory.mktemp("example")
    (folder / "test_example.py").write_text(EXAMPLE)
    (folder / "conftest.py").write_text(CONFTEST)
    collected = Collector()
    options = ["-q", "-c", "/dev/null", "-o", "markers=guarantee", "-p", "no:cacheprovider"]
    pytest.main([*options, str(folder)], plugins=[collected])
    return collected


def test_the_rows_say_what_the_tests_did(collected):
    assert {name: collected.verdict(name) for name in ("R1", "R2", "R3", "R4")} == {
        "R1": "3 tests pass",
        "R2": "**1 of 2 tests fail**",
        "R3": "**1 of 1 tests fail**",
        "R4": "**no test was run**",
    }
    assert collected.figures("R1") == ["1 of 2", "2 of 2 (2 times)"]
    assert collected.figures("R2") == []
    whole = nightly.details(collected)
    assert "* 1 of 2\n* 2 of 2 (2 times)\n" in whole
    assert whole.count("[test_reaches]") == 1
    assert "test_of_no_guarantee" not in whole
    assert "| **1 of 2 tests fail** |" in nightly.page(collected)


def test_what_passed_before_is_taken_over(tmp_path, monkeypatch):
    (tmp_path / "test_example_again.py").write_text(EXAMPLE)
    (tmp_path / "conftest.py").write_text(CONFTEST)
    log, options = (
        tmp_path / "log.jsonl",
        ["-q", "-c", "/dev/null", "-o", "markers=guarantee", "-p", "no:cacheprovider"],
    )
    monkeypatch.setattr(nightly, "_digest", lambda group, file: f"{group} as it was, {Path(file).name}")
    first = Collector(log)
    pytest.main([*options, str(tmp_path)], plugins=[first])
    with log.open("a") as file:
        file.write('{"test": "cut off')
    again = Collector(log)
    done = again.take_over()
    passed = [test for test, outcome in first.outcomes.items() if outcome == "passed"]
    assert sorted(done) == sorted(passed)
    assert len(done) == 4
    assert again.figures("R1") == first.figures("R1")
    assert {test: again.seconds[test] for test in done} == {test: first.seconds[test] for test in done}
    assert Collector(log).take_over() == done
    monkeypatch.setattr(nightly, "_digest", lambda group, file: "changed since")
    assert Collector(log).take_over() == []
    assert not log.exists()


def test_a_test_depends_on_its_file_and_not_on_those_of_other_tests(tmp_path, monkeypatch):
    changed, tests = ROOT / "tests" / "test_readme.py", ("tests/test_readme.py", "tests/test_docs.py::test_a[1]")
    before = [source_groups.digest("core"), *(source_groups.digest("core", test) for test in tests)]
    other = tmp_path / changed.name
    other.write_text(changed.read_text() + "# more")
    files = source_groups.files

    class Other(type(changed)):
        def read_bytes(self):
            return other.read_bytes() if self.name == changed.name else super().read_bytes()

    monkeypatch.setattr(source_groups, "files", lambda group: [Other(file) for file in files(group)])
    after = [source_groups.digest("core"), *(source_groups.digest("core", test) for test in tests)]
    assert [one == another for one, another in zip(before, after, strict=True)] == [False, False, True]


def test_a_group_with_a_failure_is_not_in_the_stamp(collected, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(source_groups, "STAMP", tmp_path / "stamp.json")
    monkeypatch.setattr(source_groups, "digest", lambda group: f"hash of {group}")
    hashes = {"core": "hash of core", "SimCLR": "hash of SimCLR"}
    passing = Collector()
    for test, group in (("a", "core"), ("b", "SimCLR")):
        passing.facts[test], passing.outcomes[test] = {"group": group, "reached": []}, "passed"
    tests = {"core": ["a"], "SimCLR": ["b"]}
    nightly.write_stamp(passing, hashes, tests)
    assert source_groups.changed_groups() == set(source_groups.groups()) - {"core", "SimCLR"}
    nightly.write_stamp(passing, hashes | {"SimCLR": "another, when the tests began"}, tests)
    assert "SimCLR" in source_groups.changed_groups()
    nightly.write_stamp(passing, hashes, tests | {"core": ["a", "one that did not run"]})
    assert "core" in source_groups.changed_groups()
    assert "SimCLR" not in source_groups.changed_groups()
    passing.outcomes["a"] = "failed"
    nightly.write_stamp(passing, hashes, tests)
    assert "core" in source_groups.changed_groups()
    assert "core: not all of its tests ran and passed" in capsys.readouterr().out
    (tmp_path / "stamp.json").unlink()
    assert source_groups.changed_groups() == set(source_groups.groups())


def test_a_changed_file_changes_the_hash_of_its_groups_only():
    before = {name: source_groups.files(name) for name in source_groups.groups()}
    assert all(ROOT / "pretext/simclr.py" not in files for name, files in before.items() if name != "SimCLR")
    assert ROOT / "pretext/simclr.py" in before["SimCLR"]
    assert all(ROOT / "ssl_toolkit/losses/nt_xent.py" in files for files in before.values())
    assert ROOT / "ssl_toolkit/cli/train.py" in before["core"]
    assert ROOT / "ssl_toolkit/cli/train.py" not in before["SimCLR"]
    assert ROOT / "README.md" in before["core"]


def test_the_gate_has_time_for_its_share_of_what_has_changed(tmp_path, monkeypatch):
    monkeypatch.setattr(source_groups, "STAMP", tmp_path / "stamp.json")
    assert source_groups.gate_share() == 1, "no stamp: all tests"
    hashed = {name: source_groups.digest(name) for name in source_groups.groups()}
    groups = {name: {"hash": hashed[name], "seconds": 50.0} for name in hashed}
    groups["core"]["seconds"] = 3_950.0

    def share(*changed, missing=()):
        stale = {name: {**group, "hash": "of before"} if name in changed else group for name, group in groups.items()}
        found = {name: group for name, group in stale.items() if name not in missing}
        source_groups.STAMP.write_text(json.dumps({"groups": found}))
        return source_groups.gate_share()

    assert share() == share("SimCLR", "BYOL") == 1
    assert share("core", "BYOL") == pytest.approx(source_groups.GATE_SECONDS / 4_000)
    assert share("core", missing=["BYOL"]) == pytest.approx(source_groups.GATE_SECONDS / 4_020)


def test_each_state_of_the_sources_has_its_own_sample():
    tests = [f"tests/test_a.py::test_b[{number}]" for number in range(2_000)]
    first, second = ([source_groups.in_sample(test, 0.4, sources) for test in tests] for sources in ("one", "another"))
    assert first == [source_groups.in_sample(test, 0.4, "one") for test in tests]
    # within four standard deviations of a binomial distribution, and of both as of two independent draws
    assert abs(sum(first) - 800) < 4 * (2_000 * 0.4 * 0.6) ** 0.5
    both = sum(one and other for one, other in zip(first, second, strict=True))
    assert abs(both - 320) < 4 * (2_000 * 0.16 * 0.84) ** 0.5
    assert all(source_groups.in_sample(test, 1.0, "one") for test in tests)


@pytest.mark.slow
def test_what_has_not_changed_is_left_out(tmp_path):
    """In a separate process, as the gate does it."""
    program = (
        "import sys, source_groups, pytest; source_groups.changed_groups = lambda: {'SimCLR'};"
        "sys.exit(pytest.main(['tests/every_method', '--changed', '--collect-only', '-q', '-n', '0', '-m', 'slow',"
        "'-W', 'ignore::pytest.PytestAssertRewriteWarning']))"
    )
    environment = {"PYTHONPATH": f"{ROOT}:{HERE / 'helpers'}", "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    said = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True)
    chosen = [line for line in said.stdout.splitlines() if "::" in line]
    assert chosen, said.stderr
    assert all("[SimCLR]" in line for line in chosen)


def guarantees_of_tests():
    """Pairs of a guarantee and the test function that is marked with it."""
    for file in sorted(HERE.rglob("test_*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            for mark in getattr(node, "decorator_list", []):
                if ast.unparse(mark).startswith("pytest.mark.guarantee("):
                    yield from ((each.value, file.relative_to(ROOT), node.name) for each in mark.args)


def test_the_pages_have_every_guarantee_and_every_test_of_one():
    page, details = PAGE.read_text(encoding="utf-8"), DETAILS.read_text(encoding="utf-8")
    for name, guarantee in GUARANTEES.items():
        assert f"| {guarantee.short} |" in page, f"{name}: run python tests/nightly.py"
    parts = {part.partition("\n")[0]: part for part in details.split("\n## ")}
    for name, file, function in guarantees_of_tests():
        assert name in GUARANTEES, f"{function} is marked with {name}, which is no guarantee"
        assert f"[{function}](../{file.as_posix()})" in parts[name], f"{name}: run python tests/nightly.py"


def test_cells_are_short_enough_to_read():
    cells = [cell for line in PAGE.read_text(encoding="utf-8").splitlines() if "|" in line for cell in line.split("|")]
    assert max(map(len, cells)) <= MOST_CHARACTERS
