"""Values of Python as arguments of the command line."""

from __future__ import annotations

import numbers
import os
import re
from collections.abc import Mapping
from typing import Any

from ssl_toolkit.cli.command_line import yaml_text
from ssl_toolkit.io.credentials import check_no_password

# options that print and leave
_ONLY_FOR_SHELLS = ("help", "print_config")


def recipe_options(config: Any) -> list[str]:
    """The options that name recipes; a dict stands on the command line as YAML."""
    if config is None:
        return []
    arguments = []
    for each in config if isinstance(config, (list, tuple)) else [config]:
        if isinstance(each, Mapping):
            text = yaml_text(_plain(each, "config"))
        elif isinstance(each, (str, os.PathLike)):
            text = os.fspath(each)
        else:
            raise ValueError(f"config is {kind(each)}, expected the path of a recipe, a dict, or a list of these")
        arguments += ["--config", text]
    check_no_password(arguments, "config")
    return arguments


def options(given: Mapping[str, Any], overrides: Mapping[str, Any] | None) -> list[str]:
    """Options of the command line; what is None among the given is left out."""
    if not isinstance(overrides, (Mapping, type(None))):
        raise ValueError(f"overrides is {kind(overrides)}, expected a dict such as {{'data.batch_size': 64}}")
    named = {key: value for key, value in given.items() if value is not None}
    arguments = [option for part in (named, overrides or {}) for option in _flat(_plain(part, ""))]
    check_no_password(arguments, "an option")
    return arguments


def _flat(settings: dict[Any, Any], prefix: str = "") -> list[str]:
    """Nested settings as options, a class before its arguments."""
    arguments = []
    for key, value in sorted(settings.items(), key=lambda item: item[0] != "class_path"):
        name = f"{prefix}{key}"
        if not _is_name(key):
            raise ValueError(f"unknown key {name}")
        if isinstance(value, dict) and value and all(map(_is_name, value)):
            arguments += _flat(value, f"{name}.")
        else:
            text = value if isinstance(value, str) else yaml_text(value, in_a_line=True)
            arguments.append(f"--{name.removesuffix('.class_path')}={text}")
    return arguments


def _is_name(key: Any) -> bool:
    """Whether a key may stand in an option; those of an argument that is a dict may be anything."""
    return isinstance(key, str) and bool(re.fullmatch(r"[\w.]+", key)) and key.split(".")[-1] not in _ONLY_FOR_SHELLS


def _plain(value: Any, place: str) -> Any:
    """A copy of plain data, with paths as text and NumPy's numbers as Python's.

    Raises:
        ValueError: There is an object of another kind in it.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {_plain(key, place): _plain(each, f"{place}.{key}".lstrip(".")) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each, place) for each in value]
    raise ValueError(
        f"{place} is {kind(value)}, expected plain data; name a class by class_path, and its arguments by init_args"
    )


def kind(value: Any) -> str:
    """What a value is, for a message."""
    return f"the class {value.__qualname__}" if isinstance(value, type) else f"an object of {type(value).__qualname__}"
