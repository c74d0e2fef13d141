"""What an optimizer or schedule keeps of the one whose place it takes, which the user may not have in mind."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace

from ssl_toolkit.cli.messages import class_keys
from ssl_toolkit.cli.parser import options

# what a recipe calls them, and a task
COMPONENTS = {"optimizer": "optimizer_spec", "schedule": "schedule"}


def inherited_remarks(arguments: Sequence[str], objects: Namespace) -> list[str]:
    """A line for each optimizer or schedule that keeps arguments that a recipe gave to another class.

    Merging keeps whatever the new class takes as well: a weight decay that is right for AdamW is a hundred times too
    large for SGD.

    Args:
        arguments: The command line after the verb.
        objects: What it describes.
    """
    remarks = []
    for component, attribute in COMPONENTS.items():
        kind = type(getattr(objects.model, attribute))
        taken = class_keys(f"{kind.__module__}.{kind.__qualname__}")
        name, settings = "", {}
        for new_name, values in _given(arguments, component):
            name = new_name or name
            settings |= {key: (value, name) for key, value in values.items()}
        kept = {key: each for key, each in settings.items() if each[1] != name and key in taken}
        if kept:
            before = " and ".join(dict.fromkeys(owner for _, owner in kept.values()))
            listed = ", ".join(f"{key} {value}" for key, (value, _) in kept.items())
            remarks.append(f"{name} keeps what the recipe says for {before}: {listed} (--model.{component}.NAME)")
    return remarks


def _given(arguments: Sequence[str], component: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """What the recipes and options of a command line say of a component, in order: its class, if named, and values."""
    for option, value in options(arguments):
        key = option.lstrip("-").replace("model.init_args.", "model.").removeprefix("model.")
        if option in ("-c", "--config"):
            content = yaml.safe_load(Path(value).read_text(encoding="utf-8")) or {}
            model = content.get("model") or {}
            said = (model.get("init_args") or model).get(component)
            if isinstance(said, str):
                yield _class_name(said), {}
            elif isinstance(said, dict):
                values = dict(said.get("init_args") or said)
                values.pop("class_path", None)
                yield _class_name(said.get("class_path", "")), values
        elif key in (component, f"{component}.class_path"):
            yield _class_name(value), {}
        elif key.startswith(f"{component}."):
            yield "", {key.removeprefix(f"{component}.").removeprefix("init_args."): value}


def _class_name(path: str) -> str:
    return path.rpartition(".")[2]
