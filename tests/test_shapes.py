"""The shapes that functions are annotated with are checked in the tests, by `helpers/shapes.py`."""

from __future__ import annotations

import importlib
import inspect
import pkgutil

import jaxtyping
import pytest
import torch

import shapes
from ssl_toolkit.losses import negative_cosine
from ssl_toolkit.modules import Backbone


@pytest.mark.parametrize(
    "call",
    [
        lambda: Backbone("test_resnet")(torch.zeros(3, 32, 32)),
        lambda: negative_cosine(torch.zeros(4, 8), torch.zeros(4, 9)),
        lambda: negative_cosine(torch.zeros(4, 8, dtype=torch.int64), torch.zeros(4, 8)),
    ],
    ids=["of a method", "of two arguments", "of another type"],
)
def test_a_wrong_shape_is_an_error(call):
    with pytest.raises(jaxtyping.TypeCheckError):
        call()


def test_each_function_that_names_a_shape_is_checked():
    named, unchecked = 0, []
    for package in map(importlib.import_module, shapes.ANNOTATED):
        paths = getattr(package, "__path__", [])
        names = [package.__name__, *(each.name for each in pkgutil.walk_packages(paths, f"{package.__name__}."))]
        for module in map(importlib.import_module, names):
            own = [each for each in vars(module).values() if getattr(each, "__module__", None) == module.__name__]
            members = [each for owner in own if inspect.isclass(owner) for each in vars(owner).values()]
            for each in filter(shapes.names_a_shape, [*own, *members]):
                if inspect.isclass(each):
                    continue
                named += 1
                function = getattr(each, "__func__", getattr(each, "fget", each))
                while function is not None and "jaxtyping" not in function.__code__.co_filename:
                    function = getattr(function, "__wrapped__", None)
                if function is None:
                    unchecked.append(f"{module.__name__}.{each.__name__}")
    assert unchecked == []
    assert named > 100
