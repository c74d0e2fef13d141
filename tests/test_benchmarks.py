"""The benchmarks say what they need. Their figures are looked at by people, not by tests."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

FOLDER = Path(__file__).parents[1] / "benchmarks"
FILES = [file for file in sorted(FOLDER.glob("*.py")) if "def main" in file.read_text(encoding="utf-8")]


def run(file, *options):
    return subprocess.run([sys.executable, str(file), *options], capture_output=True, text=True, timeout=100)


HELP = """
import contextlib, io, json, runpy, sys

said = {}
for file in sys.argv[1:]:
    sys.path[0], sys.argv = file.rpartition("/")[0], [file, "--help"]
    with contextlib.redirect_stdout(io.StringIO()) as text, contextlib.suppress(SystemExit):
        runpy.run_path(file, run_name="__main__")
    said[file] = text.getvalue()
print(json.dumps(said))
"""


@pytest.mark.slow
def test_help_is_given():
    """By one process, as each would take seconds to import what it measures."""
    said = subprocess.run(
        [sys.executable, "-c", HELP, *map(str, FILES)], capture_output=True, text=True, timeout=200, check=True
    )
    texts = json.loads(said.stdout)
    assert len(texts) == len(FILES) > 20
    for file, text in texts.items():
        assert "--json" in text, file
        assert "--picture" in text, file


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_missing_images_are_named(file):
    if 'add_argument("--images"' not in file.read_text(encoding="utf-8"):
        pytest.skip("needs no images")
    said = run(file, "--images", "/nowhere/at/all")
    assert said.returncode == 1
    assert said.stderr.startswith("--images /nowhere/at/all is not a folder")
    assert "Traceback" not in said.stderr


WALK = """
import sys, time
while True:
    time.sleep(float(sys.argv[1]))
    print(time.monotonic())
    print("no number")
"""
TURNS = """
import json, sys, tempfile, time
from pathlib import Path
from measuring import Trainee, in_turns

with tempfile.TemporaryDirectory() as folder:
    trainee = Trainee([sys.executable, "-c", sys.argv[1], "0.02"], Path(folder))
    trainee.turn(0.2)
    steps = len(trainee._steps())
    time.sleep(0.3)
    assert len(trainee._steps()) == steps, "it does not run between its turns"
    trainee.end()

commands = {seconds: [sys.executable, "-c", sys.argv[1], seconds] for seconds in ("0.02", "0.05")}
print(json.dumps(in_turns(commands, seconds=0.5, rounds=2, tries=1, environment={})))
"""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="turns are measured by way of /proc")
@pytest.mark.slow
def test_processes_that_take_turns_are_measured_while_they_run():
    command = [sys.executable, "-c", TURNS, WALK]
    said = subprocess.run(command, capture_output=True, text=True, timeout=100, env={"PYTHONPATH": str(FOLDER)})
    assert not said.returncode, said.stderr
    speeds = {float(seconds): [turn[0] for turn in turns] for seconds, turns in json.loads(said.stdout).items()}
    for seconds, found in speeds.items():
        assert len(found) == 2
        # sleeping takes a little longer than asked for, and a busy machine makes it longer
        assert all(0.3 / seconds < speed <= 1 / seconds for speed in found)


def test_the_memory_of_a_large_parent_is_not_taken_for_that_of_its_child(tmp_path):
    """``ru_maxrss`` of a child begins with its parent's."""
    large = bytearray(b"x") * 600_000_000
    program = (
        f"import sys; sys.path.insert(0, {str(FOLDER)!r}); from measuring import peak_memory; print(peak_memory())"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=100)
    assert 1e6 < int(said.stdout) < 200e6 < len(large)


@pytest.mark.slow
def test_the_arithmetic_of_a_recipe_is_counted(tmp_path):
    """As `throughput.py` computes it: a step without anything around it."""
    for number in range(8):
        Image.new("RGB", (32, 32), (number, 0, 0)).save(tmp_path / f"{number}.png")
    recipe = FOLDER.parent / "configs" / "pretrain" / "simclr_cifar10.yaml"
    shared = ["--worker", "count", "--images", str(tmp_path), "--recipe", str(recipe), "--size", "32"]
    counted = [
        json.loads(run(FOLDER / "throughput.py", *shared, "--batch", str(batch)).stdout)["operations"]
        for batch in (2, 4)
    ]
    # a network's operations are twice as many for twice the images; the loss has few
    assert 1e9 < counted[0] < counted[1] < 2.01 * counted[0]
