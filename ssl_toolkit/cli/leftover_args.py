"""Leftover arguments: those that an optimizer or schedule keeps from the one that it replaces, unasked."""

from __future__ import annotations

from ssl_toolkit.cli.command_line import CommandLine
from ssl_toolkit.cli.messages import class_keys
from ssl_toolkit.task import Task

# what a recipe calls them, and a task
COMPONENTS = {"optimizer": "optimizer_spec", "schedule": "schedule"}


def leftover_remarks(line: CommandLine, task: Task) -> list[str]:
    """A line for each optimizer or schedule that keeps arguments that a recipe gave to another class.

    Merging keeps whatever the new class takes as well: a weight decay that is right for AdamW is a hundred times too
    large for SGD.

    Args:
        line: The command line.
        task: What it describes.
    """
    remarks = []
    for component, attribute in COMPONENTS.items():
        kind = type(getattr(task, attribute))
        taken = class_keys(f"{kind.__module__}.{kind.__qualname__}")
        owner, kept = "", {}
        for key, value, _ in line.statements:
            if key == f"model.{component}":
                owner = str(value).rpartition(".")[2]
            elif key.startswith(f"model.{component}."):
                kept[key.removeprefix(f"model.{component}.")] = value, owner
        kept = {key: each for key, each in kept.items() if each[1] != owner and key in taken}
        if kept:
            before = " and ".join(dict.fromkeys(each[1] for each in kept.values()))
            listed = ", ".join(f"{key} {value}" for key, (value, _) in kept.items())
            remarks.append(f"{owner} keeps what the recipe says for {before}: {listed} (--model.{component}.NAME)")
    return remarks
