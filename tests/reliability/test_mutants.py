"""The comparison of several processes with one finds the bugs that peers have had, put there one by one."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import patch

import pytest
import torch

import methods
import parity
import pretext
from gloo_processes import run_processes
from ssl_toolkit import losses
from ssl_toolkit.distributed import collectives, ranks
from ssl_toolkit.distributed.ranks import world_size

# an effect that rounding will never have
MARGIN = 100


def local_standardize(x: torch.Tensor, eps: float = 1e-5) -> torch.Tensor:
    """The bug: statistics of the process's own samples."""
    centred = x - x.mean(dim=0)
    return centred * torch.rsqrt(centred.square().mean(dim=0) + eps)


def users_of(function: Any) -> list[Any]:
    """The modules of losses and methods that have imported a function, which is where it is to be replaced."""
    names = [
        f"{package.__name__}.{each.name}"
        for package in (losses, pretext)
        for each in pkgutil.iter_modules(package.__path__)
    ]
    return [module for module in map(importlib.import_module, names) if vars(module).get(function.__name__) is function]


def exchanges() -> list[type[torch.autograd.Function]]:
    """What sends gradients from process to process, but for BatchNorm."""
    found = [each for _, each in inspect.getmembers(collectives, inspect.isclass)]
    return [each for each in found if issubclass(each, torch.autograd.Function) and "Norm" not in each.__name__]


def changed_backward(exchange: Any, change: Callable[[Callable[[], Any]], Any]) -> Any:
    original = exchange.backward

    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        return change(lambda: original(ctx, *gradients))

    return patch.object(exchange, "backward", staticmethod(backward))


def without_all_reduce(compute: Callable[[], Any]) -> Any:
    with patch.object(collectives.dist, "all_reduce", lambda *_, **__: None):
        return compute()


BACKWARDS: dict[str, Callable[[Callable[[], Any]], Any]] = {
    "no gradient through the exchange": lambda compute: compute() * 0,
    "backward without all_reduce": without_all_reduce,
    "scale of 1/W": lambda compute: compute() / world_size(),
}


def mutants() -> dict[str, list[Any]]:
    """What each bug replaces."""
    found = {
        f"{name} ({exchange.__name__})": [changed_backward(exchange, change)]
        for name, change in BACKWARDS.items()
        for exchange in exchanges()
    }
    found["labels without the rank's offset"] = [
        patch.object(module, "rank", lambda: 0) for module in users_of(ranks.rank)
    ]
    found["BatchNorm of each process"] = [patch("ssl_toolkit.task.base.convert_sync_batchnorm", lambda module: module)]
    found["statistics of each process"] = [
        patch.object(module, "standardize", local_standardize) for module in users_of(collectives.standardize)
    ]
    return found


@contextlib.contextmanager
def applied(patches: list[Any]) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for each in patches:
            stack.enter_context(each)
        yield


def with_bug(name: str | None, recipes: dict[str, str]) -> dict[str, Any]:
    """The outcomes of each method, with a bug or as it is."""
    with applied(mutants()[name] if name else []):
        return {each: parity.compute(recipe, parity.Case(each)) for each, recipe in recipes.items()}


@pytest.fixture(scope="module")
def recipes(tmp_path_factory):
    """Of SimCLR, whose loss gathers, and of the pretext tasks that stand for a trait: Barlow Twins sums."""
    folder = tmp_path_factory.mktemp("recipes")
    names = {"SimCLR", *methods.representatives()} & set(methods.pretext_tasks())
    return {name: parity.write_recipe(name, folder) for name in sorted(names)}


@pytest.fixture(scope="module")
def alone(recipes):
    return with_bug(None, recipes)


def ratio(alone: dict[str, Any], together: list[dict[str, Any]]) -> float:
    """Of the method that shows a bug best, by the limit that it exceeds least."""
    found = [parity.differences(alone[name], [each[name] for each in together]) for name in alone]
    return max(min(each[dtype] / limit for dtype, limit in parity.LIMITS.items()) for each in found)


@pytest.mark.guarantee("P2")
@pytest.mark.slow
def test_without_a_bug_nothing_is_found(recipes, alone):
    assert ratio(alone, run_processes(with_bug, 2, None, recipes, timeout=280)) <= 1


@pytest.mark.guarantee("P2")
@pytest.mark.slow
@pytest.mark.parametrize("bug", mutants())
def test_every_bug_is_found(bug, recipes, alone, reached):
    found = ratio(alone, run_processes(with_bug, 2, bug, recipes, timeout=280))
    assert found > MARGIN
    reached(f"{bug}: {found:,.0f} times the limit")
