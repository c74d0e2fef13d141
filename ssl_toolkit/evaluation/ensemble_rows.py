"""Optional rows of an evaluation: ensembles and cross-validation folds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ssl_toolkit.evaluation.ensembles import bagging, boosting, cross_validate
from ssl_toolkit.evaluation.intervals import confidence_interval, paired_difference
from ssl_toolkit.evaluation.linear_probe import ProbeResult
from ssl_toolkit.evaluation.logistic_regression import Labelled
from ssl_toolkit.evaluation.rows import EnsembleRow, FoldsRow

# boosting is for members weaker than the best
_WEAKER = (1.0, 10.0, 100.0)


class Extras(NamedTuple):
    """What is measured beside kNN and the linear probe.

    Attributes:
        ensemble: Which ensemble, or None.
        members: Of how many.
        folds: How many folds, or None.
        seed: Of the draws.
    """

    ensemble: Literal["bagging", "boosting"] | None
    members: int
    folds: int | None
    seed: int

    def check(self) -> None:
        """Raises a ValueError for what cannot be, before features take their time."""
        if self.ensemble not in (None, "bagging", "boosting"):
            raise ValueError(f"--ensemble is bagging or boosting, got {self.ensemble!r}")
        if self.members < 1:
            raise ValueError(f"--members is {self.members}, expected at least 1")
        if self.folds is not None and self.folds < 2:
            raise ValueError(f"--folds is {self.folds}, expected at least 2")


def extra_rows(
    extras: Extras,
    train: Labelled,
    val: Labelled,
    test: Labelled,
    weights: Literal["given", "random"],
    probe: ProbeResult,
    say: Callable[[str], None],
    groups: Tensor | None = None,
) -> tuple[list[EnsembleRow], list[FoldsRow]]:
    """The ensembles and the folds of one set of weights, none or one of each.

    Args:
        extras: What is asked for.
        train: Pooled features and labels.
        val: Likewise.
        test: Likewise; measured once.
        weights: Whose features they are.
        probe: Their linear probe.
        say: Called with a line about each.
        groups: int64 tensor: of each training image, then of each validation image, the group that must be in one fold;
            None without groups.
    """
    ensembles, folds = [], []
    if extras.ensemble is not None:
        say(f"{extras.ensemble} of {extras.members} with {weights} weights")
        ensembles.append(_ensemble_row(extras, train, val, test, weights, probe))
    if extras.folds is not None:
        say(f"{extras.folds} folds with {weights} weights")
        both = torch.cat([train[0], val[0]]), torch.cat([train[1], val[1]])
        result = cross_validate(both, extras.folds, seed=extras.seed, groups=groups)
        folds.append(FoldsRow(weights, result.values, result.top1.mean, result.top1.std))
    return ensembles, folds


def _ensemble_row(
    extras: Extras,
    train: Labelled,
    val: Labelled,
    test: Labelled,
    weights: Literal["given", "random"],
    probe: ProbeResult,
) -> EnsembleRow:
    strength = probe.strength
    if extras.ensemble == "boosting":
        tried = [strength * factor for factor in _WEAKER]
        strength = max(tried, key=lambda one: boosting(train, val, strength=one, num_members=extras.members).top1)
        result = boosting(train, test, strength=strength, num_members=extras.members)
        kind: Literal["bagging", "boosting"] = "boosting"
    else:
        result = bagging(train, test, strength=strength, num_members=extras.members, seed=extras.seed)
        kind = "bagging"
    over_probe = paired_difference(result.correct, probe.correct, seed=extras.seed)
    top1 = confidence_interval(result.correct)
    return EnsembleRow(weights, kind, len(result.members), strength, top1, over_probe)
