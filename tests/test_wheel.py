"""What is installed from a source distribution works outside of a clone; nothing of the clone is used or changed."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKED = ("ssl_toolkit", "pretext", "downstream", "configs")
FILES = ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE")
RECIPES = sorted(f"{file.parent.name}/{file.stem}" for file in (ROOT / "configs").glob("*/*.yaml"))

LOOK = """
import json, sys
import ssl_toolkit
from ssl_toolkit.cli.command_line import CommandLine
from ssl_toolkit.cli.recipes import SIDES, shipped
recipes = {f"{side}/{name}": str(file) for side in SIDES for name, file in shipped(side).items()}
for recipe in recipes:
    side, name = recipe.split("/")
    assert CommandLine(side, ["-c", name]).arguments == ["-c", recipes[recipe]]
print(json.dumps([ssl_toolkit.__file__, recipes]))
"""


def run(*command, cwd, **environment):
    kept = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(command, cwd=cwd, env=kept | environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder into which the wheel of a source distribution is installed, without a network."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in PACKED:
        shutil.copytree(ROOT / name, folder / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in FILES:
        shutil.copy(ROOT / name, folder / "source")
    build = "from setuptools import build_meta; build_meta.build_sdist('..')"
    run(sys.executable, "-c", build, cwd=folder / "source")
    (packed,) = folder.glob("*.tar.gz")
    offline = ["--no-deps", "--no-index", "--quiet", "--disable-pip-version-check"]
    pip = [sys.executable, "-m", "pip"]
    run(*pip, "wheel", *offline, "--no-build-isolation", str(packed), cwd=folder)
    (wheel,) = folder.glob("*.whl")
    run(*pip, "install", *offline, "--target", "target", wheel.name, cwd=folder)
    return folder / "target"


@pytest.mark.slow
def test_each_recipe_of_an_installed_wheel_is_found_by_its_name(installed, tmp_path):
    module, recipes = json.loads(run(sys.executable, "-c", LOOK, cwd=tmp_path, PYTHONPATH=str(installed)))
    assert Path(module).is_relative_to(installed)
    assert sorted(recipes) == RECIPES
    for name, file in recipes.items():
        assert Path(file).is_relative_to(installed)
        assert Path(file).read_bytes() == (ROOT / "configs" / f"{name}.yaml").read_bytes()


def test_a_wheel_leaves_no_folder_of_a_common_name_beside_the_packages(installed):
    assert {each.name for each in installed.iterdir() if each.suffix != ".dist-info"} == {*PACKED[:3], "bin"}
