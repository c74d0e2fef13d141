"""State of an optimizer from a file: compared with what the optimizer itself keeps, before a step is made with it.

A fused kernel goes through a parameter and its state side by side: where the state is shorter, it writes past its end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

Build = Callable[[list[dict[str, Any]]], torch.optim.Optimizer]


def check_state(optimizer: torch.optim.Optimizer, saved: dict[str, Any], build: Build, has_stepped: bool) -> None:
    """Compares a saved state with what an optimizer keeps for each of its parameters.

    What it keeps is found by one step of such an optimizer on a parameter of zeros, of the same shape.

    Args:
        optimizer: The one that is going to take over the state.
        saved: Its state and parameter groups, as torch saves them.
        build: Builds such an optimizer for parameter groups, without a fused kernel.
        has_stepped: Whether a step was made with the saved state.

    Raises:
        ValueError: In one line, as the rest of a sentence about the file.
    """
    now, before = optimizer.param_groups, saved["param_groups"]
    sizes = [[len(group["params"]) for group in groups] for groups in (before, now)]
    if sizes[0] != sizes[1]:
        raise ValueError(f"its optimizer has groups of {sizes[0]} parameters, but the task of {sizes[1]}")
    known: dict[Any, dict[str, Any]] = {}
    parameters = ((place, each) for place, group in enumerate(now) for each in group["params"])
    for number, (place, parameter) in enumerate(parameters):
        key = place, tuple(parameter.shape)
        if key not in known:
            known[key] = _kept(build, now[place], parameter)
        if problem := next(_misfits(saved["state"].get(number, {}), known[key], parameter), None):
            shape = list(parameter.shape)
            raise ValueError(f"its optimizer's state of parameter {number}, of shape {shape}, {problem}")
    if has_stepped and any(known.values()) and not any(saved["state"].values()) and not _were_off(before, now):
        raise ValueError("its optimizer's state is empty, though the run has made steps")


def _were_off(before: list[dict[str, Any]], now: list[dict[str, Any]]) -> bool:
    """Whether a setting is on that was off, such as a momentum: nothing may have been kept for it."""
    return any(
        group[name] and not saved[name]
        for saved, group in zip(before, now, strict=True)
        for name in group.keys() & saved.keys() - {"params", "fused", "foreach"}
        if type(saved[name]) in (int, float, bool)
    )


def _kept(build: Build, group: dict[str, Any], like: Tensor) -> dict[str, Any]:
    """What an optimizer keeps for a parameter after a step."""
    parameter = torch.zeros(like.shape, dtype=like.dtype)
    parameter.grad = torch.zeros_like(parameter)
    optimizer = build([{**group, "params": [parameter], "fused": False}])
    optimizer.step()
    return dict(optimizer.state[parameter])


def _misfits(found: dict[str, Any], expected: dict[str, Any], parameter: Tensor) -> Iterator[str]:
    if not found:  # a parameter without a gradient so far
        return
    for name in expected.keys() - found.keys():
        yield f"lacks {name}"
    for name, value in found.items():
        like = expected.get(name, parameter if isinstance(value, Tensor) else value)
        if not isinstance(like, Tensor):
            if isinstance(like, (int, float)) and not isinstance(value, (int, float)):
                yield f"has no number as {name}"
        elif not isinstance(value, Tensor):
            yield f"has no tensor as {name}"
        elif value.shape != like.shape:
            yield f"has {name} of shape {list(value.shape)}, expected {list(like.shape)}"
        elif value.dtype.is_floating_point != like.dtype.is_floating_point or value.dtype.is_complex:
            yield f"has {name} in {str(value.dtype).removeprefix('torch.')}"
