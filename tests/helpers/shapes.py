"""Checks tensors against the shapes that functions are annotated with, in the tests and only there.

The annotations are texts, which nothing else reads but a type checker: jaxtyping is no dependency of the project.
"""

from __future__ import annotations

import builtins
from collections.abc import Callable
from typing import Any

import jaxtyping
from beartype import BeartypeConf, beartype

ANNOTATED = (
    "ssl_toolkit.losses", "ssl_toolkit.modules", "ssl_toolkit.augment", "ssl_toolkit.evaluation", "downstream.sequence",
)  # fmt: skip
NAMES = ("Bool", "Float", "Int64", "Num", "UInt8")

# an int is a float, as everywhere in Python's typing
_check = beartype(conf=BeartypeConf(is_pep484_tower=True))


def check(function: Callable[..., Any]) -> Callable[..., Any]:
    """Checks a function if any of its annotations names a shape."""
    texts = [each for each in getattr(function, "__annotations__", {}).values() if isinstance(each, str)]
    annotated = any(f"{name}[" in text for text in texts for name in NAMES)
    return _check(function) if annotated else function


def install() -> None:
    """From now on whatever is imported is checked."""
    for name in NAMES:
        setattr(builtins, name, getattr(jaxtyping, name))
    jaxtyping.install_import_hook(ANNOTATED, "shapes.check")
