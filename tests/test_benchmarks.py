"""The benchmarks say what they need. Their figures are looked at by people, not by tests."""

import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"
FILES = [file for file in sorted(FOLDER.glob("*.py")) if "def main" in file.read_text(encoding="utf-8")]


def run(file, *options):
    return subprocess.run([sys.executable, str(file), *options], capture_output=True, text=True, timeout=100)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_help_is_given(file):
    said = run(file, "--help")
    assert said.returncode == 0
    assert "--json" in said.stdout


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_missing_images_are_named(file):
    if 'add_argument("--images"' not in file.read_text(encoding="utf-8"):
        pytest.skip("needs no images")
    said = run(file, "--images", "/nowhere/at/all")
    assert said.returncode == 1
    assert said.stderr.startswith("--images /nowhere/at/all is not a folder")
    assert "Traceback" not in said.stderr
