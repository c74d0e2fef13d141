"""YAML from files and options: checked before it is built, because a short text can stand for a huge tree."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import yaml

from ssl_toolkit.errors import printable

# libyaml where PyYAML has it: ten times as fast, which is a tenth of a second of a start
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_MOST_LEVELS = 64
_MOST_VALUES = 100_000


def check_yaml(text: str, name: str) -> None:
    """Raises a ValueError for YAML that is nested too deeply, or that says too much by its aliases.

    Each alias stands for all of what it names, so that a few lines can stand for billions (a "billion laughs").

    Args:
        text: The YAML; if it is none, the parser will say so.
        name: Where it stands, for the message.
    """
    if not any(sign in text for sign in "[{*:-"):
        return
    try:
        _check(text, name, _LOADER)
    except (yaml.YAMLError, RecursionError):
        # libyaml also refuses what is nested deeply, but does not say how deeply it may be
        with contextlib.suppress(yaml.YAMLError, RecursionError):
            _check(text, name, yaml.SafeLoader)


def load_yaml(text: str) -> Any:
    """What YAML stands for: plain data only, as from ``yaml.safe_load``, but faster."""
    loader = _LOADER(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def _check(text: str, name: str, loader: Any) -> None:
    open_nodes: list[tuple[str | None, int]] = []  # the anchor of each open collection, and the values before it
    sizes: dict[str, int] = {}
    num = 0
    for event in yaml.parse(text, Loader=loader):
        if isinstance(event, yaml.CollectionStartEvent):
            open_nodes.append((event.anchor, num))
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_nodes.pop()
            if anchor is not None:
                sizes[anchor] = num - before
        elif isinstance(event, yaml.AliasEvent):
            if any(anchor == event.anchor for anchor, _ in open_nodes):
                raise ValueError(f"{name}: the alias *{printable(event.anchor)} stands within what it names")
            num += sizes.get(event.anchor, 1)
        num += isinstance(event, yaml.NodeEvent)
        if len(open_nodes) > _MOST_LEVELS:
            raise ValueError(f"{name} is nested more than {_MOST_LEVELS} levels deep, which no settings are")
        if num > _MOST_VALUES:
            raise ValueError(f"{name} stands for more than {_MOST_VALUES:,} values, which no settings have")


def read_yaml(file: Path) -> Any:
    """Reads a file of plain data.

    Raises:
        ValueError: It is no YAML, or stands for too much.
    """
    try:
        text = file.read_text(encoding="utf-8")
        check_yaml(text, str(file))
        return load_yaml(text)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        reason = " ".join(str(error).split()).replace('in "<unicode string>", ', "at ")
        raise ValueError(f"{file} is damaged ({reason}): restore it from a copy") from None
