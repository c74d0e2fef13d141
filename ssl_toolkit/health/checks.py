"""Checks of a task before its run: the initial loss, overfitting one batch, the gradient."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ssl_toolkit.health.collapse import Extent, Outputs
from ssl_toolkit.health.findings import Check, Finding
from ssl_toolkit.health.trial import (
    copy_of,
    loss_of,
    open_branches,
    still,
    weights_of,
    without_changing_buffers,
)
from ssl_toolkit.modules import Backbone
from ssl_toolkit.task import Task

# relative sizes of a step along a direction; the loss may be computed in float32 somewhere, which asks for a large one
_STEPS = (1e-6, 1e-8, 1e-4, 1e-3)
_EXACT = 1e-3  # as good as any step size will do
_GRADIENT_TOLERANCE = 0.01
_GROUPS = 6
_RATES = (1e-3, 1e-2)  # of Adam; a head alone asks for the larger
_CLOSED = 0.5  # the fraction of the way to the least loss that overfitting one batch must go
_TOGETHER = 0.3  # of the spread at the start: what learned to tell samples apart kept 0.8 of it or more


def initial_loss(task: Task, batch: Any) -> Check:
    """Compares the loss of a batch at step 0 with what the task says of a network that knows nothing.

    Args:
        task: The task, set up.
        batch: Of its loader.
    """
    name = "loss at the start"
    loss = float(loss_of(copy_of(task), batch).detach())
    theory = task.initial_loss(len(batch.indices))
    if not math.isfinite(loss):
        advice = "Look at the views for values that are not finite, and begin with smaller weights."
        finding = Finding("initial loss", f"The loss of the first batch is {loss}.", advice)
        return Check(name, f"{loss}", "a number", [finding])
    if theory is None:
        return Check(name, f"{loss:.3f}", "the task names none", [])
    below, above = task.initial_loss_margin
    expected = f"{theory:.3f} (- {below:.2g}, + {above:.2g})"
    findings = []
    if loss > theory + above:
        findings = [
            Finding(
                "initial loss",
                f"The loss at the start is {loss:.3f}, where a network that knows nothing has {theory:.3f}: it is "
                "confident and wrong.",
                "Give the last layer smaller weights, and see that it has as many outputs as there are classes.",
            )
        ]
    elif loss < theory - below:
        findings = [
            Finding(
                "initial loss",
                f"The loss at the start is {loss:.3f}, below the {theory:.3f} of a network that knows nothing: the "
                "answer leaks into the input, or the loss is scaled.",
                "See what the task sees (views.png of a run), and how the loss is averaged.",
            )
        ]
    return Check(name, f"{loss:.3f}", expected, findings)


def overfit(
    task: Task, batch: Any, seconds: float = 30.0, most_steps: int = 150, clock: Callable[[], float] = time.process_time
) -> Check:
    """Overfits one batch: the same views in each step, no dropout, Adam at 0.001 or 0.01.

    Karpathy, "A recipe for training neural networks" (2019). A task that cannot do that has a fault
    that no setting mends. If time runs out while the loss still falls, that is no finding.

    Args:
        task: The task, set up.
        batch: A few samples.
        seconds: When to give up, beside the number of steps; of the processor's time, so that a machine that has more
            to do says the same.
        most_steps: For each of the two rates.
        clock: Seconds, monotonic; another one for tests.
    """
    num = len(batch.indices)
    least, started = task.least_loss_of(batch), clock()
    losses: list[float] = []
    first: dict[str, Extent] = {}
    last: dict[str, Extent] = {}
    for rate in _RATES:
        copied = still(task)
        outputs = Outputs(copied)
        optimizer = torch.optim.Adam([each for each in copied.parameters() if each.requires_grad], lr=rate)
        for _ in range(most_steps):
            optimizer.zero_grad()
            value = loss_of(copied, batch)
            losses.append(float(value.detach()))
            first = first or outputs.extents()
            if clock() - started > seconds or not losses[-1] - least >= 0.05 * (losses[0] - least):
                break
            value.backward()
            optimizer.step()
        last = outputs.extents()
        if _closed(losses, least) >= _CLOSED or clock() - started > seconds:
            break
    closed, best = _closed(losses, least), min(losses)
    in_vain = len(losses) >= most_steps or closed < 0.2
    findings = []
    if not math.isfinite(losses[0]) or (closed < _CLOSED and in_vain):
        findings = [
            Finding(
                "overfitting one batch",
                f"The loss of {num} samples, the same in every step, goes from {losses[0]:.3f} to {best:.3f} in "
                f"{len(losses)} steps and not to {least:.3f}: the task cannot even overfit one batch.",
                "See that labels and views belong together, that nothing between the weights and the loss is detached "
                "or dead, and that the initialisation is not constant.",
            )
        ]
    elif together := [name for name, each in last.items() if each.spread < _TOGETHER * first[name].spread]:
        name = together[-1]
        findings = [
            Finding(
                "overfitting one batch",
                f"The loss of {num} samples goes from {losses[0]:.3f} to {best:.3f}, but by a collapse: the spread of "
                f"their {name}s falls from {first[name].spread:.2g} to {last[name].spread:.2g} (1 is even).",
                "See that the loss tells samples apart: by negatives, by a penalty, or by a predictor, a stop-gradient "
                "and a teacher that moves slowly.",
            )
        ]
    measured = f"{losses[0]:.3f} to {best:.3f} in {len(losses)} steps"
    return Check("overfit one batch", measured, f"{100 * _CLOSED:.0f} % of the way to {least:.3f}", findings)


def _closed(losses: list[float], least: float) -> float:
    """The fraction of the way from the first loss to the least loss that training went."""
    best = min(loss for loss in losses if not math.isnan(loss)) if not math.isnan(losses[0]) else losses[0]
    return (losses[0] - best) / (losses[0] - least) if losses[0] > least else 1.0


def gradient(task: Task, batch: Any) -> Check:
    """Compares the loss's gradient with finite differences in float64, along directions through groups of layers.

    A direction is the gradient of a group of parameters plus a random one of the same length, so that a part that is
    missing shows as well as one that is wrong. The difference is central, and the best of several step sizes counts: a
    ReLU that changes sides on the way spoils one of them, a wrong gradient spoils them all.

    Args:
        task: The task, set up.
        batch: A few samples.
    """
    name = "gradient"
    if task.stops_gradients:
        return Check(name, "left out", "the task holds a part of its loss constant on purpose", [])
    copied = open_branches(still(task)).double()
    for backbone in copied.modules():
        if isinstance(backbone, Backbone):  # the student's, and a teacher's
            backbone.register_forward_pre_hook(lambda module, inputs: tuple(each.double() for each in inputs))

    def compute() -> Tensor:
        return without_changing_buffers(copied, lambda: loss_of(copied, batch))

    named = {name: each for name, each in copied.named_parameters() if each.requires_grad}
    gradients = without_changing_buffers(
        copied, lambda: torch.autograd.grad(loss_of(copied, batch), list(named.values()), allow_unused=True)
    )
    slopes = {
        name: torch.zeros_like(parameter) if slope is None else slope
        for (name, parameter), slope in zip(named.items(), gradients, strict=True)
    }
    whole = _length(slopes.values())
    worst, where = 0.0, ""
    generator = torch.Generator().manual_seed(0)
    for group in _groups(list(named), list(weights_of(copied))):
        own = _length(slopes[each] for each in group)
        noise = {each: torch.randn(named[each].shape, generator=generator).to(named[each]) for each in group}
        scale = (own or 1.0) / _length(noise.values())
        direction = {each: slopes[each] + scale * noise[each] for each in group}
        expected = float(sum((slopes[each] * direction[each]).sum() for each in group))
        # what rounding leaves of a gradient that is 0
        floor = 1e-6 * max(whole, 1e-12) * _length(direction.values())
        error = math.inf
        for step in _STEPS:
            difference = abs(_slope(named, direction, step, compute) - expected)
            error = min(error, difference / max(abs(expected), floor))
            if error < _EXACT:
                break
        if not error <= worst:
            worst, where = error, f"{group[0]} to {group[-1]}" if len(group) > 1 else group[0]
    findings = []
    if not worst <= _GRADIENT_TOLERANCE:
        findings = [
            Finding(
                "gradient",
                f"The gradient differs from finite differences of the loss by {100 * worst:.3g} % ({where}).",
                "Look for a backward of your own, a detach, a no_grad or an in-place change between there and the "
                "loss. If a part is held constant on purpose, say so by the task's stops_gradients.",
            )
        ]
    return Check(name, f"error {worst:.1e}", f"at most {_GRADIENT_TOLERANCE:g} (relative)", findings)


def _groups(names: list[str], weights: list[str]) -> list[list[str]]:
    """Neighbouring parameters in a few groups, each beginning with a weight where there is one."""
    starts = [names.index(name) for name in weights] or [0]
    stride = max(1, math.ceil(len(starts) / _GROUPS))
    chosen = [0, *starts[::stride][1:], len(names)]
    return [names[low:high] for low, high in pairwise(chosen) if high > low]


@torch.no_grad()
def _slope(
    named: dict[str, Any], direction: dict[str, Tensor], relative: float, compute: Callable[[], Tensor]
) -> float:
    """The central difference of the loss along a direction."""
    kept = {name: named[name].detach().clone() for name in direction}
    step = relative * max(_length(kept.values()), 1e-3) / max(_length(direction.values()), 1e-30)
    values = []
    for sign in (1, -1):
        for name, towards in direction.items():
            named[name].copy_(kept[name] + sign * step * towards)
        values.append(float(compute()))
    for name, value in kept.items():
        named[name].copy_(value)
    return (values[0] - values[1]) / (2 * step)


def _length(tensors: Any) -> float:
    return math.sqrt(sum(float(tensor.detach().double().square().sum()) for tensor in tensors))
