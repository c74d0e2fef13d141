"""Shipped recipes by their names: ``-c simclr`` is ``configs/pretrain/simclr.yaml``, wherever that is installed."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from pathlib import Path

import ssl_toolkit
from ssl_toolkit.errors import nearest
from ssl_toolkit.io.yaml_files import load_yaml

OPTIONS = ("-c", "--config")
SIDES = ("pretrain", "transfer")
# the ones to begin with
FIRST = {"pretrain": "simclr", "transfer": "linear_probe"}
_PACKAGE = Path(ssl_toolkit.__file__).parent
# a wheel has them in the package (setup.py), a clone beside it
_FOLDERS = (_PACKAGE / "recipes", _PACKAGE.parent / "configs")


def shipped(side: str) -> dict[str, Path]:
    """The recipes of ``pretrain`` or of ``transfer`` by their names, in the order of these."""
    folder = next((folder for folder in _FOLDERS if folder.is_dir()), _FOLDERS[0])
    return {file.stem: file for file in sorted((folder / side).glob("*.yaml"))}


def find(recipe: str, side: str) -> str:
    """What a recipe's option says, with the file in the place of a shipped recipe's name.

    Args:
        recipe: The path of a file, which wins over a name; a name; or YAML itself.
        side: ``pretrain`` or ``transfer``: whose recipes are meant.

    Raises:
        ValueError: It is a name, but of no recipe of that side.
    """
    if not re.fullmatch(r"[\w-]+", recipe) or Path(recipe).is_file():
        return recipe
    names = shipped(side)
    if recipe in names:
        return str(names[recipe])
    for other in SIDES:
        if recipe in shipped(other):
            raise ValueError(f"{recipe} is a recipe of {other}: ssl-toolkit {other} -c {recipe}")
    hint = nearest(recipe, names) or f"; recipes of {side}: {', '.join(names)}"
    raise ValueError(f"there is no file and no recipe {recipe!r}{hint}")


def tasks() -> dict[str, str]:
    """The class paths of the tasks that shipped recipes train, by the names of their classes."""
    found = {}
    for side in SIDES:
        for file in shipped(side).values():
            path = load_yaml(file.read_text(encoding="utf-8"))["model"]["class_path"]
            found[path.rpartition(".")[2]] = path
    return found


def hint(name: str, side: str) -> str:
    """What to append to a message about a file that is not there, but has the name of a shipped recipe."""
    return f"; the shipped recipe of this name is -c {name}" if side in SIDES and name in shipped(side) else ""


def recipes_first(arguments: Sequence[str]) -> list[str]:
    """A command line with its recipes before all else: an option overrides them wherever it stands."""
    first, rest = [], []
    remaining = iter(arguments)
    for argument in remaining:
        option, equals, _ = argument.partition("=")
        if option not in OPTIONS:
            rest.append(argument)
        else:
            first += [argument] if equals else [argument, *itertools.islice(remaining, 1)]
    return first + rest


def with_files(arguments: Sequence[str], side: str) -> list[str]:
    """A command line with the files in the place of shipped recipes' names."""
    found, is_recipe = [], False
    for argument in arguments:
        option, equals, value = argument.partition("=")
        if is_recipe:
            argument = find(argument, side)
        elif option in OPTIONS and equals:
            argument = f"{option}={find(value, side)}"
        is_recipe = not is_recipe and argument in OPTIONS
        found.append(argument)
    return found
