"""The command line of a training, read once: what it says, where, and in which order."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from ssl_toolkit.cli import recipes
from ssl_toolkit.data import ImageData
from ssl_toolkit.errors import nearest
from ssl_toolkit.io.yaml_files import check_yaml, load_yaml
from ssl_toolkit.run_folder import CONFIG, open_run
from ssl_toolkit.runtime.preemption import is_restarted


class Statement(NamedTuple):
    """A statement of a recipe or an option.

    Attributes:
        key: Such as ``data.batch_size`` or ``model.optimizer.lr``; of a class the key of what is an object of it.
        value: A text if an option says it.
        by_recipe: Whether it stands in a recipe.
    """

    key: str
    value: Any
    by_recipe: bool


class CommandLine:
    """The arguments of ``pretrain`` or ``transfer``, and the recipes that they name.

    Args:
        command: ``pretrain`` or ``transfer``.
        given: The arguments after it.

    Attributes:
        resumed: The folder of the run that is resumed; None for a new one.
        arguments: For the parser: those that were given, with the files of shipped recipes in the place of their names,
            behind the configuration of a run that is resumed.

    Raises:
        ValueError: The run that is to be resumed is not there, a recipe's name is unknown, or an option is for a view
            that no recipe names.
    """

    def __init__(self, command: str, given: Sequence[str]) -> None:
        self.command = command
        options, self.arguments = dict(read_options(given)), recipes.with_files(recipes.recipes_first(given), command)
        run, out = options.get("--resume"), options.get("--out")
        if run is None and out is not None and is_restarted() and (Path(out) / CONFIG).is_file():
            # the same command again, which this time has something to go on with
            run, self.arguments = out, []
        self.resumed = None if run is None else open_run(run)
        if self.resumed is not None:
            # the run's own configuration first, so that what the command line adds wins
            self.arguments = ["--config", str(self.resumed / CONFIG), *self.arguments]
        self.arguments = _with_all_views(self.arguments)
        self._check_views()

    @cached_property
    def statements(self) -> list[Statement]:
        """All that is said, in order: what comes later wins."""
        return statements(self.arguments)

    def _check_views(self) -> None:
        """An option with a wrong name would otherwise be one more view."""
        said = [
            (each.key.split("."), each.by_recipe) for each in self.statements if each.key.startswith("model.views.")
        ]
        named = {key[2]: None for key, by_recipe in said if by_recipe}
        for key, by_recipe in said:
            if not by_recipe and key[2] not in named:
                known = f"recipes name {', '.join(named)}" if named else "no recipe names any"
                raise ValueError(f"--{'.'.join(key)}: {known}; a new view needs a recipe{nearest(key[2], named)}")

    @property
    def set_by_options(self) -> set[str]:
        """The keys that options set."""
        return {each.key for each in self.statements if not each.by_recipe}

    @property
    def task_class(self) -> type | None:
        """The class of the task that is named; None if there is no such class."""
        tasks = [each.value for each in self.statements if each.key == "model" and isinstance(each.value, str)]
        module, _, name = (tasks[-1] if tasks else "").rpartition(".")
        try:
            return getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError, ValueError):
            return None  # the parser will say what is wrong with the name

    @property
    def data_class(self) -> type:
        """The data class of the task that is named; images by default."""
        return getattr(self.task_class, "data_class", ImageData)


def statements(arguments: Sequence[str]) -> list[Statement]:
    """All that a command line and its recipes say, in order: what comes later wins."""
    said = []
    for option, value in read_options(arguments):
        if option in recipes.OPTIONS:
            said += [Statement(key, each, True) for key, each in _flat(_read(value))]
        else:
            said.append(Statement(_key(option), value, False))
    return said


def read_options(arguments: Sequence[str]) -> list[tuple[str, str]]:
    """The options of a command line with their values, in either notation (``--a b`` and ``--a=b``)."""
    found = []
    for argument, following in zip(arguments, [*arguments, ""][1:], strict=True):
        if argument.startswith("-"):
            option, equals, value = argument.partition("=")
            found.append((option, value if equals else following))
    return found


class _Quoting(yaml.SafeDumper):
    """Quotes every text, so that none is read as a number, and writes out what stands in two places."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Quoting.add_representer(str, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"'))


def yaml_text(value: Any, in_a_line: bool = False) -> str:
    """Plain data as YAML that is read as the same data.

    Args:
        value: The data.
        in_a_line: Write all of it in one line, as an option's value.
    """
    style = True if in_a_line else None
    text = yaml.dump(value, Dumper=_Quoting, default_flow_style=style, width=float("inf"), sort_keys=False)
    return text.removesuffix("...\n").strip() if in_a_line else text


def _key(option: str) -> str:
    """The key of an option, without what only the parser needs to know."""
    return option.lstrip("-").replace(".init_args", "").removesuffix(".class_path")


def _read(recipe: str) -> dict[str, Any]:
    """What a recipe says, a file or YAML itself; nothing if it is none, which the parser will say."""
    try:
        text = Path(recipe).read_text(encoding="utf-8") if _is_file(recipe) else recipe
    except (OSError, UnicodeDecodeError):
        return {}
    check_yaml(text, recipe if _is_file(recipe) else "the recipe")
    try:
        content = load_yaml(text)
    except (yaml.YAMLError, RecursionError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _is_file(recipe: str) -> bool:
    return "\n" not in recipe and Path(recipe).is_file()


def _flat(said: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Keys and values, a class before its arguments."""
    if prefix and "class_path" in said:
        yield prefix, said["class_path"]
    for name, value in said.items():
        key = prefix if name == "init_args" else f"{prefix}.{name}".lstrip(".")
        if isinstance(value, dict):
            yield from _flat(value, key)
        elif name != "class_path":
            yield key, value


def _with_all_views(arguments: list[str]) -> list[str]:
    """Has a recipe that changes some of the views of one before it keep the others, which the parser would drop."""
    known: dict[str, Any] = {}
    merged = list(arguments)
    for place, argument in enumerate(arguments):
        option, equals, value = argument.partition("=")
        if option not in recipes.OPTIONS:
            continue
        content = _read(value if equals else arguments[place + 1])
        model = content.get("model")
        task = model.get("init_args", model) if isinstance(model, dict) else None
        views = task.get("views") if isinstance(task, dict) else None
        if not isinstance(task, dict) or not isinstance(views, dict):
            continue
        known = {name: each for name, each in {**known, **views}.items() if each is not None}
        if known != views:
            task["views"] = known
            text = yaml_text(content)
            merged[place if equals else place + 1] = f"{option}={text}" if equals else text
    return merged
