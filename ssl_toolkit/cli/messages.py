"""Parser errors as messages of one line, with the nearest valid name."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import os
import pkgutil
import re
from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ArgumentParser

from ssl_toolkit.cli import recipes
from ssl_toolkit.errors import nearest, no_switch

# of a value that may be of several types, without classes that say themselves what is wrong
_NO_TYPE_FITS = re.compile(r"Errors:\n((?:\s+- Expected an? .+\n)+)\s+Given value type: .+\n\s+Given value: (.+)")

# of a class among others by names, such as the tasks of a multi-task
_PART = re.compile(r"callable class: Option '([^']+)' is not accepted\. Got value: Namespace\(class_path='([^']+)'")

_MOST_NAMES = 8  # in a message

# what jsonargparse says of its own types
_RAW = re.compile(r"Union subtypes|typing\.|<class |Given value|Subclass types")


def one_line(message: str, parser: ArgumentParser, arguments: Sequence[str] = ()) -> str:
    """Turns an error of jsonargparse into one line.

    Args:
        message: The error's text, often nested over many lines.
        parser: The parser that raised it; its keys are the valid names.
        arguments: The command line, if that is what was parsed.
    """
    keys = re.findall(r'[Pp]arser key "([^"]+)"', message)
    classes = re.findall(r"class_path '([^']+)'", message)
    where = ".".join(keys)

    if match := re.search(r"unrecognized arguments: (\S+)", message):
        return _unknown_option(match[1].split("=")[0], parser, arguments)
    if match := re.search(r"Group '([^']+)' does not accept option '([^']+)'", message):
        return _unknown_key(match[1], match[2], [key for key in parser_keys(parser) if key.startswith(match[1] + ".")])
    if match := _PART.search(message):
        return _unknown_in_part(where, match[1], match[2], message)
    if match := re.search(r"Option '([^']+)' is not accepted", message):
        if classes:
            return _unknown_key(where, match[1], class_keys(classes[-1]))
        return _unknown_key("", match[1], [key.split(".")[0] for key in parser_keys(parser)])
    if match := re.search(r"module '([^']+)' has no attribute '([^']+)'", message):
        choices = {*dir_of(match[1]), *modules_of(match[1])}
        return f"{where}: there is no {match[2]!r} in {match[1]}{nearest(match[2], sorted(choices))}"
    if match := re.search(r"No module named '([^']+)'", message):
        parent, _, name = match[1].rpartition(".")
        return f"{where}: there is no module {match[1]!r}{nearest(name, modules_of(parent)) if parent else ''}"
    if where == "tracker":
        return f"tracker: expected wandb, none, or settings of W&B such as --tracker.project NAME; {_given(message)}"
    if problem := _no_class(message, where):
        return problem
    if match := re.search(r"File does not exist: '([^']+)'", message):
        file = Path(os.path.relpath(match[1]))
        hint = nearest(str(file), map(str, file.parent.glob("*"))) or recipes.hint(file.stem, _side(parser))
        return f"there is no file '{file}'{hint}"
    if where.endswith("backbone.pretrained") and (match := re.search(r"Got value: (.+)", message)):
        return no_switch(where, match[1])
    if match := re.search(r"Expected an? (.+?)\. Got value: (.+)", message):
        return f"{where} is {match[2]!r}, expected {_plain_type(match[1])}{_nearest_literal(match[2], match[1])}"
    if match := re.search(r"the following arguments are required: (.+)", message):
        first = recipes.FIRST.get(_side(parser), "RECIPE")
        advice = f" (a recipe gives it: -c {first}; --help lists them)" if match[1].startswith("model") else ""
        return f"missing: {', '.join(_as_typed(name, parser) for name in match[1].split(', '))}{advice}"
    if match := re.search(r'Key "([^"]+)" is required', message):
        return f"missing: {_as_typed('.'.join([*keys, match[1]]), parser)}"
    if "Problems parsing config" in message:
        return " ".join(message.split()).replace('in "<unicode string>", ', "at ")
    if "Union subtypes" in message and "typing.Literal" in message:
        # of an argument of a class the types of the class come first
        types = re.findall(r"Subtypes: (.*typing\.Literal.*)", message) or [message.partition("Errors:")[0]]
        choices = re.findall(r"'([\w.-]+)'", types[-1].replace("'bool'", "'true' 'false'"))
        value = _given(message[max(0, message.rfind("Subtypes: ")) :], first=True).removeprefix("got ")
        choices = [choice for choice in dict.fromkeys(choices) if choice != "NoneType"]
        expected = f"one of {', '.join(choices)}" if len(choices) > 1 else choices[0]
        return f"{where} is {value}, expected {expected}{nearest(value, choices)}"
    if match := _NO_TYPE_FITS.search(message):
        types = [_plain_type(each) for each in re.findall(r"- Expected an? (.+)", match[1])]
        types = ["null" if each == "NoneType" else each for each in types]
        return f"{where} is {match[2]!r}, expected {' or '.join(types)}"
    inner = " ".join(_innermost(message).split())
    return f"{where} is {_value(message)}, expected a value of another type" if _RAW.search(inner) else inner


def _no_class(message: str, where: str) -> str | None:
    """The line for a value that should be the name of a class or the settings of one; None for other errors."""
    if match := re.search(r"Unable to load config '(.+)'", message):
        # the key of a section stands there twice
        return _no_settings(re.sub(r"(?:^|(?<=\.))(\w+)\.\1$", r"\1", where), match[1])
    if match := re.search(r"Expected an instantiatable class, but (\S+)\.(\w+) is abstract", message):
        names = concrete_classes(match[1], match[2]) or list(recipes.tasks().values())
        more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
        listed = f"{', '.join(names[:_MOST_NAMES])}{more}"
        return f"{where} is given settings, but no class: first --{where} with one of {listed}"
    path = re.search(r"(?:Expected a dot import path string|Unexpected import path format): (\S+)", message)
    classes = re.findall(r"Not a valid subclass of (\w+)", message)
    if not path and not classes:
        return None
    value = repr(path[1]) if path else _value(message)
    if "- Expected a <class 'float'>" in message:
        return f"{where} is {value}, expected float or the settings of a schedule (value, end, schedule)"
    if not path:
        return f"{where} is {value}, expected {' or '.join(dict.fromkeys(classes))}: its class_path and init_args"
    if where.endswith("backbone"):
        return _no_settings(where, path[1])
    names = recipes.tasks() if where == "model" else {name: name for name in component_names()}
    return f"{where}: there is no class {value}{nearest(path[1], names, names)}"


def _unknown_in_part(where: str, option: str, class_path: str, message: str) -> str:
    typed = re.search(r"NestedArg\(key='([^']+)'", message)
    key = f"model.{typed[1]}" if typed else f"{where}: {class_path}: {option}"
    if option in (names := class_keys(class_path)):
        return f"{key} belongs to the whole run: give model.{option}"
    return f"unknown key {key}{nearest(option, names)}"


def _no_settings(where: str, value: str) -> str:
    advice = f" (--{where}.name {value})" if where.endswith("backbone") else ""
    return f"{where} is {value!r}, expected settings by their names{advice}"


def _value(message: str) -> str:
    """The value that an error is about; the innermost is named first."""
    match = re.search(r"Got value: (.+)", message) or re.search(r"Given value: (?:NestedArg\(.*val=)?(.+)", message)
    return match[1].removesuffix(")") if match else "wrong"


def parser_keys(parser: ArgumentParser) -> list[str]:
    """The names of all values of a parser (``data.path``, say)."""
    return [action.dest for action in parser._actions if action.dest != "help"]


def parser_options(parser: ArgumentParser) -> list[str]:
    """The options of a parser, as one types them."""
    return [option for action in parser._actions for option in action.option_strings]


def class_keys(class_path: str) -> list[str]:
    """The names of the arguments of a class, those that it passes on to its bases included."""
    module, _, name = class_path.rpartition(".")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(getattr(importlib.import_module(module), name))
    return sorted({key.split(".")[0] for key in parser_keys(parser)})


def dir_of(module: str) -> list[str]:
    """The public names of a module."""
    return [name for name in dir(importlib.import_module(module)) if not name.startswith("_")]


def modules_of(package: str) -> list[str]:
    """The modules of a package."""
    try:
        return [module.name for module in pkgutil.iter_modules(importlib.import_module(package).__path__)]
    except (ImportError, AttributeError):
        return []


def concrete_classes(module: str, base: str) -> list[str]:
    """The classes of a module that can take the place of an abstract one, by their names."""
    found = importlib.import_module(module)
    classes = {name: getattr(found, name) for name in dir_of(module)}
    return [
        name
        for name, each in classes.items()
        if inspect.isclass(each) and issubclass(each, getattr(found, base)) and not inspect.isabstract(each)
    ]


def component_names() -> list[str]:
    """The names of the classes that a configuration may name without their module."""
    modules = ("optim", "schedule", "init", "regularization", "augment")
    return [name for module in modules for name in dir_of(f"ssl_toolkit.{module}") if name[0].isupper()]


def _side(parser: ArgumentParser) -> str:
    """``pretrain`` or ``transfer``, if it is the parser of such a command."""
    return parser.prog.split()[-1]


def _unknown_option(option: str, parser: ArgumentParser, arguments: Sequence[str]) -> str:
    """An option that nobody knows; below a class jsonargparse names it without the class's own key."""
    from ssl_toolkit.cli.command_line import read_options, statements  # which imports torch

    for typed, _ in read_options(arguments):
        section, _, key = typed.removeprefix("--").partition(".")
        if key and key == option.removeprefix("--"):
            kinds = [
                each.value for each in statements(arguments) if each.key == section and isinstance(each.value, str)
            ]
            with contextlib.suppress(ImportError, AttributeError, ValueError, IndexError):
                rest = key.partition(".")[1:]
                known = [f"--{section}.{each}{''.join(rest)}" for each in class_keys(kinds[-1])]
                return f"unknown option {typed}{nearest(typed, known)}"
            return f"unknown option {typed}"
    if not option.startswith("-"):
        return f"an argument too many: {option}; what belongs to an option stands behind it, such as --data.path IMAGES"
    return f"unknown option {option}{nearest(option, parser_options(parser))}"


def _as_typed(name: str, parser: ArgumentParser) -> str:
    """What is missing, as one types it."""
    if name == "run_dir":
        return "the folder of a run"
    return f"--{name}" if f"--{name}" in parser_options(parser) else name


def _unknown_key(where: str, key: str, choices: list[str]) -> str:
    full = f"{where}.{key}" if where else key
    shown = [choice.removeprefix(where + ".") for choice in choices]
    return f"unknown key {full}{nearest(key.split('.')[0], shown)}"


def _given(message: str, first: bool = False) -> str:
    part = message.partition("Given value: ") if first else message.rpartition("Given value: ")
    return "got " + part[2].splitlines()[0]


def _innermost(message: str) -> str:
    """The error that a class raised when it was built, without what the parser says around it."""
    inner = message
    while "Errors:" in inner:
        inner = inner.partition("Errors:")[2].partition("- Expected a <class 'NoneType'>")[0].strip().removeprefix("- ")
    frame = re.compile(r'\s*(Problem with given class_path|[Pp]arser key ")')
    return "\n".join(line for line in inner.splitlines() if not frame.match(line)) or message


def _plain_type(text: str) -> str:
    plain = re.sub(r"<class '(?:builtins\.)?([^']+)'>", r"\1", text)
    plain = re.sub(r"\btuple\b", "list", plain)  # as YAML calls it
    plain = re.sub(r"\bbool\b", "true or false", plain)
    return plain.replace("typing.Literal", "one of ").replace("typing.", "")


def _nearest_literal(value: str, expected: str) -> str:
    return nearest(value, re.findall(r"'([^']+)'", expected)) if "Literal" in expected else ""
