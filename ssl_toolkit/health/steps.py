"""Layer checks: a few steps of the recipe's own optimizer, gradients over depth, dead units."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ssl_toolkit.distributed.dtensor import full_tensor
from ssl_toolkit.errors import counted
from ssl_toolkit.health.findings import Check, Finding, name_some
from ssl_toolkit.health.layers import LayerStatistics, layer_statistics
from ssl_toolkit.health.trial import copy_of, loss_of, open_branches, weights_of
from ssl_toolkit.optim import parameter_groups
from ssl_toolkit.task import Task

WARMUP_STEPS = 10
MEASURED_STEPS = 5
RATIOS = (1e-5, 1e-1)  # of an update to its weight; about 1e-3 is healthy (Karpathy, CS231n notes, "Neural networks 3")
_LARGEST_STEP = 1.0  # an update as large as the weight replaces it
_LEAST_PATH = 0.1
_MOST_DEAD = 0.5
_DEPTH_RATIO = 1e4


class Trial(NamedTuple):
    """What a few steps of the recipe's optimizer did.

    Attributes:
        losses: Of each step.
        ratios: The length of each step's update over that of the weight, by weight; the last few steps are at the
            full learning rate.
        still_zero: The weights that had no gradient in any step.
        alike: The weights of two or more units whose units are all equal after the steps.
        peak: The schedule's largest factor.
        path: How many steps at the full rate the whole run is worth.
    """

    losses: list[float]
    ratios: dict[str, list[float]]
    still_zero: list[str]
    alike: list[str]
    peak: float
    path: float


def try_steps(task: Task, batches: Sequence[Any], total_steps: int, steps_per_epoch: float, clip: float = 0.0) -> Trial:
    """Trial steps on a copy of a task: a short warm-up, then some at the schedule's largest rate.

    Args:
        task: The task, set up.
        batches: Taken in turn.
        total_steps: Of the run.
        steps_per_epoch: Likewise.
        clip: The norm to which gradients are clipped; 0 for none.
    """
    copied = copy_of(task)
    spec = copied.optimizer_spec
    optimizer = spec.build(parameter_groups(copied, copied.base_lr(), spec.weight_decay, copied.lr_factor))
    rates = [group["lr"] for group in optimizer.param_groups]
    places = [total_steps * place / 200 for place in range(200)]
    factors = [copied.schedule.factor(int(place), total_steps, steps_per_epoch) for place in places]
    peak = max(factors)
    weights = weights_of(copied)
    ratios: dict[str, list[float]] = {name: [] for name in weights}
    moved = dict.fromkeys(weights, False)
    losses = []
    for step in range(WARMUP_STEPS + MEASURED_STEPS):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * peak * min(1.0, (step + 1) / WARMUP_STEPS)
        optimizer.zero_grad()
        loss = loss_of(copied, batches[step % len(batches)])
        losses.append(float(loss.detach()))
        loss.backward()
        if clip:
            nn.utils.clip_grad_norm_(copied.parameters(), clip)
        for name, weight in weights.items():
            moved[name] |= weight.grad is not None and bool(weight.grad.any())
        before = {name: weight.detach().clone() for name, weight in weights.items()}
        optimizer.step()
        for name, ratio in update_ratios(before, weights).items():
            ratios[name].append(ratio)
        if not math.isfinite(losses[-1]):
            break
    alike = [name for name, weight in weights.items() if len(weight) > 1 and bool((weight == weight[:1]).all())]
    path = sum(factors) / max(peak, 1e-12) / len(factors) * total_steps
    return Trial(losses, ratios, [name for name in weights if not moved[name]], alike, peak, path)


@torch.no_grad()
def update_ratios(before: dict[str, Tensor], after: dict[str, nn.Parameter]) -> dict[str, float]:
    """Update ratios: the length of each weight's update over that of the weight; weights of zeros are left out."""
    lengths = torch.stack(
        [
            torch.stack([full_tensor((after[name] - old).float().norm()), full_tensor(old.float().norm())])
            for name, old in before.items()
        ]
    ).tolist()
    return {name: update / weight for name, (update, weight) in zip(before, lengths, strict=True) if weight > 0}


def updates(trial: Trial) -> Check:
    """Judges the size of the updates, and whether the units of a layer differ.

    Args:
        trial: Of `try_steps`.
    """
    found = {name: ratios for name, ratios in trial.ratios.items() if ratios}
    usual = {name: median(ratios[-MEASURED_STEPS:]) for name, ratios in found.items()}
    largest = median([max(ratios) for ratios in found.values()]) if found else 0.0
    middle = median(usual.values()) if usual else 0.0
    path = middle * trial.path
    findings = []
    if not all(map(math.isfinite, trial.losses)) or middle > RATIOS[1] or largest > _LARGEST_STEP:
        findings.append(
            Finding(
                "learning rate",
                f"The learning rate is too large: a step changes a weight by {100 * largest:.3g} % of its size at most "
                f"and by {100 * middle:.3g} % after {WARMUP_STEPS} steps (median of the layers), where 0.1 % is usual; "
                f"the loss goes from {trial.losses[0]:.3g} to {trial.losses[-1]:.3g}.",
                "Divide optimizer.lr by 10, and again until this is gone.",
            )
        )
    elif middle < RATIOS[0] or (middle < 10 * RATIOS[0] and path < _LEAST_PATH):
        findings.append(
            Finding(
                "learning rate",
                f"The learning rate is too small: a step changes a weight by {100 * middle:.2g} % of its size (median "
                f"of the layers), where 0.1 % is usual, and all steps of the run by {100 * path:.2g} % at most.",
                "Multiply optimizer.lr by 10, and again until this is gone.",
            )
        )
    if trial.alike:
        findings.append(
            Finding(
                "symmetry",
                f"All units of {name_some(trial.alike)} are alike, and steps do not part them: they compute one thing.",
                "Draw the weights at random: ssl_toolkit.init.Kaiming before a ReLU, Xavier before tanh.",
            )
        )
    measured = f"{middle:.1e} (median of {len(usual)} layers)"
    return Check("update to weight", measured, f"about 1e-3; {RATIOS[0]:.0e} to {RATIOS[1]:.0e}", findings)


def examine_layers(task: Task, batch: Any) -> list[LayerStatistics]:
    """Each layer at step 0, with residual branches that begin closed opened."""
    return layer_statistics(open_branches(copy_of(task)), lambda copied: loss_of(copied, batch))


def depth(layers: Sequence[LayerStatistics], trial: Trial) -> Check:
    """Judges how the gradient changes over the depth, and which layers get none.

    Args:
        layers: Of `examine_layers`.
        trial: Of `try_steps`: a layer below one that begins with zeros has no gradient at step 0, and later has.
    """
    found = [(layer.name, layer.gradients.norm) for layer in layers if layer.gradients is not None]
    broken = [name for name, norm in found if not math.isfinite(norm)]
    broken += [layer.name for layer in layers if not math.isfinite(layer.activations.norm)]
    positive = [(name, norm) for name, norm in found if math.isfinite(norm) and norm > 0]
    findings = []
    if broken:
        findings.append(
            Finding(
                "exploding gradients",
                f"Activations or gradients of {name_some(sorted(set(broken)))} are not finite at step 0.",
                "Begin with smaller weights (ssl_toolkit.init.Kaiming), and put a normalisation between the layers.",
            )
        )
    if trial.still_zero:
        findings.append(
            Finding(
                "no gradient",
                f"{len(trial.still_zero)} of {len(trial.ratios)} weights have no gradient at all in "
                f"{len(trial.losses)} steps: {name_some(trial.still_zero)}.",
                "Weights of zeros, dead ReLUs or a detach between them and the loss stop it; freeze what shall not "
                "be trained.",
            )
        )
    ratio = 1.0
    if positive:
        (low, least), (high, most) = min(positive, key=lambda pair: pair[1]), max(positive, key=lambda pair: pair[1])
        ratio = most / least
        if ratio > _DEPTH_RATIO:
            places = [name for name, _ in positive]
            vanishing = places.index(low) < places.index(high)
            findings.append(
                Finding(
                    "vanishing gradients" if vanishing else "exploding gradients",
                    f"The gradient {'vanishes' if vanishing else 'explodes'} on its way down: it is {ratio:.1e} times "
                    f"as large at {high} as at {low}.",
                    "Use an initialisation that keeps the variance (Kaiming before a ReLU, Xavier before tanh), a "
                    "normalisation after each layer, or residual branches.",
                )
            )
    measured = f"{ratio:.1e} ({len(trial.still_zero)} layers without)"
    return Check("gradient over depth", measured, f"at most {_DEPTH_RATIO:.0e} (0 without)", findings)


def dead_units(layers: Sequence[LayerStatistics]) -> Check:
    """Judges the fraction of units that are 0 for a whole batch.

    Args:
        layers: Of `examine_layers`.
    """
    fractions = {layer.name: layer.dead for layer in layers if layer.dead is not None}
    findings = []
    if dead := [name for name, fraction in fractions.items() if fraction > _MOST_DEAD]:
        worst = max(dead, key=lambda name: fractions[name])
        findings = [
            Finding(
                "dead units",
                f"{100 * fractions[worst]:.0f} % of the units after {worst} are 0 for every sample of the batch and "
                f"learn nothing ({counted(len(dead), 'such layers')}: {name_some(dead)}).",
                "Begin with biases of 0, lower the learning rate, or take a leaky ReLU.",
            )
        ]
    measured = f"{100 * max(fractions.values()):.0f} %" if fractions else "no ReLU modules"
    return Check("dead units, worst layer", measured, f"at most {100 * _MOST_DEAD:.0f} %", findings)
