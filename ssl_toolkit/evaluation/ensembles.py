"""Ensembles of linear probes on frozen features: bagging, boosting, and cross-validation.

Each member is the logistic regression of `ssl_toolkit.evaluation.linear_probe`; what differs is how much each training
image counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ssl_toolkit.data.folds import stratified_folds
from ssl_toolkit.evaluation.intervals import Spread, mean_and_spread
from ssl_toolkit.evaluation.linear_probe import linear_probe
from ssl_toolkit.evaluation.logistic_regression import Labelled, LinearClassifier, fit_linear
from ssl_toolkit.random import integers, number, sample_keys

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int64, Num


class EnsembleResult(NamedTuple):
    """An ensemble, measured.

    Attributes:
        top1: Accuracy on the test images, in ``[0, 1]``.
        correct: bool tensor of shape ``[num_test]``: whether each test image was classified rightly.
        scores: float tensor of shape ``[num_test, num_classes]``: what the members say together. Probabilities of
            bagging, weighted votes of boosting.
        members: The classifiers.
        weights: How much each counts.
    """

    top1: float
    correct: Tensor
    scores: Tensor
    members: list[LinearClassifier]
    weights: list[float]


def bootstrap(num: int, draw: int, seed: int = 0) -> Int64[Tensor, " num"]:
    """Bootstrap counts of ``num`` draws with replacement from as many samples: int64 tensor of shape ``[num]``."""
    key = sample_keys(number("bootstrap", seed), draw, torch.arange(num))
    return torch.bincount(integers(key, 0, num), minlength=num)


def bagging(
    train: Labelled, test: Labelled, *, strength: float, num_members: int = 10, seed: int = 0, resample: bool = True
) -> EnsembleResult:
    """Bagging: linear classifiers of bootstrap resamples, whose probabilities are averaged (Breiman 1996, "Bagging
    predictors", Machine Learning 24, section 2; he averages probabilities in section 6.1).

    Args:
        train: Features and labels to draw from.
        test: Features and labels that are measured once.
        strength: Of each member's L2 penalty.
        num_members: How many members.
        seed: Of the draws; a member does not depend on how many there are.
        resample: Without it every member gets every image once, and all are the same.

    Returns:
        The ensemble; each member has the weight ``1 / num_members``.

    Raises:
        ValueError: If there are no members, or as `linear_probe`.
    """
    _check_members(num_members)
    num_classes = _num_classes(train, test)
    members = []
    for member in range(num_members):
        counts = bootstrap(len(train[1]), member, seed) if resample else None
        members.append(fit_linear(train, strength, num_classes, weights=counts))
    scores = torch.stack([member(test[0]).softmax(dim=1) for member in members]).mean(dim=0)
    return _measured(scores, test[1], members, [1 / num_members] * num_members)


def boosting(train: Labelled, test: Labelled, *, strength: float, num_members: int = 10) -> EnsembleResult:
    """Boosting: linear classifiers one after the other, each fitted to what those before got wrong, by SAMME (Zhu, Zou,
    Rosset and Hastie 2009, "Multi-class AdaBoost", Statistics and Its Interface 2, algorithm 2).

    It ends early with a member that makes no mistake, which then decides alone, and before one that is no better than
    chance. A strong penalty makes the members weak, which is what boosting is for.

    Args:
        train: Features and labels to fit.
        test: Features and labels that are measured once.
        strength: Of each member's L2 penalty.
        num_members: How many members at most.

    Returns:
        The ensemble; its scores are fractions of the weighted votes.

    Raises:
        ValueError: If there are no members, or as `linear_probe`.
    """
    _check_members(num_members)
    num_classes = _num_classes(train, test)
    counts = torch.full((len(train[1]),), 1 / len(train[1]), dtype=torch.float64, device=train[1].device)
    members: list[LinearClassifier] = []
    weights: list[float] = []
    for _ in range(num_members):
        member = fit_linear(train, strength, num_classes, weights=counts)
        wrong = member(train[0]).argmax(dim=1) != train[1]
        weight, counts = samme_step(counts, wrong, num_classes)
        if members and weight <= 0:
            break
        if math.isinf(weight):
            members, weights = [member], [1.0]
            break
        members.append(member)
        weights.append(weight)
        if weight <= 0:
            weights = [1.0]  # the first is no better than chance: there is nothing to boost
            break
    votes = torch.zeros(len(test[1]), num_classes, dtype=torch.float64, device=test[1].device)
    for member, weight in zip(members, weights, strict=True):
        votes.scatter_add_(
            1, member(test[0]).argmax(dim=1, keepdim=True), torch.full_like(votes[:, :1], weight / sum(weights))
        )
    return _measured(votes, test[1], members, weights)


def samme_step(
    counts: Num[Tensor, " samples"], wrong: Bool[Tensor, " samples"], num_classes: int
) -> tuple[float, Float[Tensor, " samples"]]:
    """One step of SAMME (Zhu et al. 2009, algorithm 2, (b) to (e)).

    Args:
        counts: float64 tensor of shape ``[num_images]``: how much each image counts; sums to 1.
        wrong: bool tensor of shape ``[num_images]``: whether the member got it wrong.
        num_classes: Number of classes.

    Returns:
        The member's weight (infinite without a mistake, 0 or less if it is no better than chance), and how much each
        image counts for the next.
    """
    error = float(counts[wrong].sum() / counts.sum())
    if error <= 0:
        return math.inf, counts
    if error >= 1:
        return -math.inf, counts
    weight = math.log((1 - error) / error) + math.log(num_classes - 1)
    counts = counts * torch.where(wrong, math.exp(weight), 1.0)
    return weight, counts / counts.sum()


class FoldsResult(NamedTuple):
    """A figure over folds.

    Attributes:
        top1: Mean and spread of the accuracy over the folds.
        values: The accuracy of each fold.
        correct: bool tensor of shape ``[num_images]``: whether each image was classified rightly, when it was left out.
    """

    top1: Spread
    values: list[float]
    correct: Tensor


def cross_validate(
    data: Labelled,
    num_folds: int = 5,
    *,
    classify: Callable[[Labelled, Tensor], Tensor] | None = None,
    strength: float | None = None,
    seed: int = 0,
    groups: Int64[Tensor, " samples"] | None = None,
) -> FoldsResult:
    """Cross-validation: accuracy on each fold of a classifier fitted to the others (Stone 1974, JRSS B 36).

    The spread is that of the folds, not a standard error: their training images overlap, and no estimate of the
    variance of a cross-validation is free of bias (Bengio and Grandvalet 2004, JMLR 5).

    Args:
        data: Features and labels.
        num_folds: How many folds.
        classify: Called with what to fit and with the features left out; returns their predicted classes, an int64
            tensor. By default a linear probe, whose penalty is chosen on a fifth of what it is fitted to.
        strength: A penalty that is not chosen.
        seed: Of the folds.
        groups: As for `stratified_folds`.

    Returns:
        Mean, spread, and whether each image was classified rightly.

    Raises:
        ValueError: As `stratified_folds`, or as `linear_probe`.
    """
    features, labels = data
    folds = stratified_folds(labels, num_folds, seed, groups)
    correct = torch.zeros(len(labels), dtype=torch.bool, device=labels.device)
    for fold in range(num_folds):
        held = folds == fold
        rest = (features[~held], labels[~held])
        of_rest = None if groups is None else groups[~held]
        predicted = classify(rest, features[held]) if classify else _probe(rest, features[held], strength, of_rest)
        correct[held] = predicted == labels[held]
    values = [float(correct[folds == fold].double().mean()) for fold in range(num_folds)]
    return FoldsResult(mean_and_spread(values), values, correct)


def _probe(train: Labelled, features: Tensor, strength: float | None, groups: Tensor | None) -> Tensor:
    num_classes = _num_classes(train)
    if strength is None:
        most = len(train[1]) if groups is None else len(groups.unique())
        # of a single group nothing can be left out to choose by
        choosing = stratified_folds(train[1], min(5, most), groups=groups) == 0 if most > 1 else train[1] >= 0
        kept = ~choosing if most > 1 else choosing
        fitted, chosen = (train[0][kept], train[1][kept]), (train[0][choosing], train[1][choosing])
        strength = linear_probe(fitted, chosen, chosen).strength
    return fit_linear(train, strength, num_classes)(features).argmax(dim=1)


def _measured(scores: Tensor, labels: Tensor, members: list[LinearClassifier], weights: list[float]) -> EnsembleResult:
    correct = scores.argmax(dim=1) == labels
    return EnsembleResult(float(correct.double().mean()), correct, scores, members, weights)


def _num_classes(*parts: Labelled) -> int:
    return max(2, 1 + max(int(labels.max()) for _, labels in parts))


def _check_members(num_members: int) -> None:
    if num_members < 1:
        raise ValueError(f"an ensemble needs at least 1 member, got {num_members}")
