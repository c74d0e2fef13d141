"""Parser functions for all commands."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser, Namespace

from ssl_toolkit.cli.messages import one_line
from ssl_toolkit.cli.recipes import recipes_first
from ssl_toolkit.io.yaml_files import check_yaml, load_yaml


def parse(parser: ArgumentParser, arguments: Sequence[str]) -> Namespace:
    """Parses a command line; what the user can mend becomes a ValueError of one line."""
    arguments = recipes_first(arguments)
    for argument in arguments:
        _check_yaml_of(argument)
    try:
        config = parser.parse_args(arguments)
    except ArgumentError as error:
        raise ValueError(one_line(str(error), parser, arguments)) from None
    except RecursionError:
        raise ValueError("the configuration is nested too deeply") from None
    for section in parser.groups or ():
        # jsonargparse lets anything take the place of a section, and then forgets what was in it
        if section in config and not isinstance(config[section], Namespace):
            raise ValueError(f"{section} is {config[section]!r}, expected settings by their names")
    return config


def _check_yaml_of(argument: str) -> None:
    """Of an option's value, or of the file that it names."""
    option, equals, value = argument.partition("=") if argument.startswith("-") else ("", "", argument)
    if equals or not option:
        file = Path(value)
        is_file = file.suffix in (".yaml", ".yml", ".json") and "\n" not in value and file.is_file()
        with contextlib.suppress(OSError, UnicodeDecodeError):  # the parser will say what is wrong with it
            check_yaml(
                file.read_text(encoding="utf-8") if is_file else value, value if is_file else option or "a value"
            )


def instantiate(parser: ArgumentParser, config: Namespace) -> Namespace:
    """Builds the objects that a configuration describes."""
    try:
        return parser.instantiate(config)
    except (ArgumentError, ValueError) as error:
        raise ValueError(one_line(str(error), parser)) from None


def plain(parser: ArgumentParser, config: Namespace) -> dict[str, Any]:
    """The configuration as plain data, every default written out."""
    kept = config.clone()
    for key in ("config", "out", "resume", "budget", "speed", "folds"):
        kept.pop(key, None)
    return load_yaml(parser.dump(kept, skip_validation=True, skip_unset=False))
