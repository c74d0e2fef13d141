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
check = beartype(conf=BeartypeConf(is_pep484_tower=True))
_original = jaxtyping.jaxtyped


def names_a_shape(function: Any) -> bool:
    """Whether one of its annotations, which are texts, is that of a tensor with a shape."""
    function = getattr(function, "__func__", getattr(function, "fget", function))
    texts = [each for each in getattr(function, "__annotations__", {}).values() if isinstance(each, str)]
    return any(f"{name}[" in text for text in texts for name in NAMES)


def _jaxtyped(typechecker: Any) -> Callable[[Any], Any]:
    """`jaxtyping.jaxtyped` for what names a shape; it binds the arguments of each call, which a training feels."""
    checked = _original(typechecker=typechecker)
    return lambda function: checked(function) if names_a_shape(function) else function


def install() -> None:
    """From now on whatever is imported is checked."""
    for name in NAMES:
        setattr(builtins, name, getattr(jaxtyping, name))
    jaxtyping.jaxtyped = _jaxtyped  # the name that the hook writes before each function
    jaxtyping.install_import_hook(ANNOTATED, "shapes.check")
