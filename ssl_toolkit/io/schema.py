"""Schemas of plain data from a file: what each entry may be, and the first one that is something else."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from ssl_toolkit.errors import printable

_MOST = 1 << 48


class Kind(NamedTuple):
    """A kind of value.

    Attributes:
        words: What it is called in messages.
        fits: Whether a value is of it.
    """

    words: str
    fits: Callable[[Any], bool]


class Maybe(NamedTuple):
    """An entry that may be missing."""

    schema: Any


class Each(NamedTuple):
    """A dictionary all of whose values fit a schema."""

    schema: Any


class Only(dict[str, Any]):
    """A dictionary of these entries and no others; a plain ``dict`` as a schema may have others."""


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e300 and math.isfinite(value)


COUNT = Kind("a count (a whole number, 0 or more)", lambda value: type(value) is int and 0 <= value < _MOST)
AT_LEAST_ONE = Kind("a whole number of at least 1", lambda value: COUNT.fits(value) and value > 0)
NUMBER = Kind("a finite number", _is_number)
FLAG = Kind("true or false", lambda value: isinstance(value, bool))
TEXT = Kind("a text", lambda value: isinstance(value, str))
ANYTHING = Kind("anything", lambda value: True)


def problems(value: Any, schema: Any, where: str = "") -> Iterator[str]:
    """What of a value does not fit a schema, each as a part of a sentence.

    Args:
        value: Plain data.
        schema: A `Kind`; a dictionary of schemas by key; `Each`; or a list with the schema of all entries of a list.
        where: The value's place, for the message.
    """
    if isinstance(schema, Kind):
        if not schema.fits(value):
            yield f"{where} is {shown(value)}, expected {schema.words}"
    elif isinstance(schema, list):
        if isinstance(value, (list, tuple)):
            for number, each in enumerate(value):
                yield from problems(each, schema[0], f"{where}[{number}]")
        else:
            yield f"{where} is {shown(value)}, expected a list"
    elif not isinstance(value, dict):
        yield f"{where or 'all of it'} is {shown(value)}, expected a dictionary"
    elif isinstance(schema, Each):
        for key, each in value.items():
            yield from problems(each, schema.schema, f"{where}[{shown(key)}]")
    else:
        if isinstance(schema, Only) and (unknown := value.keys() - schema.keys()):
            yield f"{where} has the unknown entry {shown(min(unknown, key=str))}"
        for key, each in schema.items():
            place, needed = f"{where}.{key}".lstrip("."), not isinstance(each, Maybe)
            if key in value:
                yield from problems(value[key], each if needed else each.schema, place)
            elif needed:
                yield f"{place} is missing"


def shown(value: Any) -> str:
    """A value in a few words: data from a file may be long, or hold codes that a terminal would obey."""
    if hasattr(value, "shape"):
        return f"a tensor of shape {list(value.shape)}"
    if isinstance(value, (dict, list, tuple, set)):
        return f"a {type(value).__name__} of {len(value)}"
    if type(value) is int and abs(value) >= _MOST:
        return "a huge number"
    text = printable(repr(value))
    return text if len(text) <= 60 else f"{text[:57]}..."
