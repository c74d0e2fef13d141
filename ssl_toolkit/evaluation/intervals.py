"""Confidence intervals of accuracies and of their differences."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Bool, Num

# the 97.5 % point of the standard normal distribution
_Z = 1.959963984540054


class Interval(NamedTuple):
    """An estimate with the ends of its 95 % interval.

    Attributes:
        value: The estimate.
        low: Lower end.
        high: Upper end.
    """

    value: float
    low: float
    high: float


def confidence_interval(correct: Num[Tensor, " images"] | Bool[Tensor, " images"]) -> Interval:
    """Accuracy with its 95 % confidence interval (Wilson 1927, "Probable inference, the law of succession, and
    statistical inference", JASA 22, pages 209-212), which stays within 0 and 1 and is sound for few images and near 0
    and 1.

    Args:
        correct: bool tensor of shape ``[num_images]``: whether each image was classified rightly.

    Returns:
        The accuracy and its interval, in ``[0, 1]``.

    Raises:
        ValueError: If there are no images.
    """
    return wilson_interval(int(correct.sum()), correct.numel())


def wilson_interval(right: int, num: int) -> Interval:
    """As `confidence_interval`, of so many images that are right among so many."""
    if not num:
        raise ValueError("an accuracy needs at least one image, got none")
    return _wilson(right / num, num)


def clustered_interval(right: Num[Tensor, " clusters"], num: Num[Tensor, " clusters"]) -> Interval:
    """Accuracy with its 95 % interval where samples come in clusters, such as the frames of sequences.

    Wilson's interval of as many independent samples as would have the accuracy's variance over the clusters: the
    effective sample size (Kish 1965, "Survey sampling", section 8.2; Korn and Graubard 1998, Survey Methodology 24,
    pages 193-201, use it for another interval). It is the number of clusters where these do not differ at all, and
    never more than the number of samples. With fewer than ten clusters it is too narrow.

    Args:
        right: Tensor of shape ``[clusters]``: samples of each cluster that were classified rightly.
        num: Tensor of shape ``[clusters]``: its samples, at least 1.

    Returns:
        The accuracy of all samples and its interval, in ``[0, 1]``.

    Raises:
        ValueError: There are no clusters.
    """
    clusters = len(num)
    if not clusters:
        raise ValueError("an accuracy needs at least one sample, got none")
    total = float(num.double().sum())
    p = float(right.double().sum()) / total
    deviations = float((right.double() - p * num.double()).square().sum())
    if not deviations or clusters == 1:
        return _wilson(p, clusters)
    variance = clusters / (clusters - 1) * deviations / total**2
    return _wilson(p, min(p * (1 - p) / variance, total))


def _wilson(p: float, num: float) -> Interval:
    centre = (p + _Z**2 / (2 * num)) / (1 + _Z**2 / num)
    half = _Z / (1 + _Z**2 / num) * math.sqrt(p * (1 - p) / num + _Z**2 / (4 * num**2))
    # rounding must not push the accuracy out of its interval at 0 and 1
    return Interval(p, min(max(centre - half, 0.0), p), max(min(centre + half, 1.0), p))


def newcombe_difference(first: Interval, second: Interval) -> Interval:
    """The difference of two accuracies, with its 95 % interval from those of each (Newcombe 1998, "Interval estimation
    for the difference between independent proportions", Statistics in Medicine 17, method 10).

    It takes the two for independent. For the same test images it is wider than needed: where it is known which images
    are right, take `paired_difference`.

    Args:
        first: With its Wilson interval.
        second: Likewise; it is taken off.
    """
    value = first.value - second.value
    below = math.hypot(first.value - first.low, second.high - second.value)
    above = math.hypot(first.high - first.value, second.value - second.low)
    return Interval(value, value - below, value + above)


def paired_difference(
    correct: Bool[Tensor, " images"], baseline: Bool[Tensor, " _"], *, num_draws: int = 10_000, seed: int = 0
) -> Interval:
    """Paired bootstrap: the difference of two accuracies on the same test images, with its 95 % interval.

    An image counts +1, 0 or -1: right only here, in both or neither, only in the baseline. Drawing the images with
    replacement (Efron 1979) is then one multinomial draw of the three counts. To the images drawn from, one is added on
    each side, after Bonett and Price 2012 ("Adjusted Wald confidence interval for a difference of binomial proportions
    based on paired data", JEBS 37): a handful of images that all agree would otherwise give an interval of no width.

    Args:
        correct: bool tensor of shape ``[num_images]``.
        baseline: bool tensor of shape ``[num_images]``: of the same images, in the same order.
        num_draws: Number of bootstrap draws.
        seed: Of the draws.

    Returns:
        Accuracy minus the baseline's, with its interval, in ``[-1, 1]``.

    Raises:
        ValueError: If the two are not of the same, non-empty, length.
    """
    num = correct.numel()
    if not num or num != baseline.numel():
        raise ValueError(f"a paired difference needs the same images twice, got {num} and {baseline.numel()}")
    better = int((correct & ~baseline).sum())
    worse = int((baseline & ~correct).sum())
    fractions = np.array([better + 1, worse + 1, num - better - worse]) / (num + 2)
    counts = np.random.default_rng(seed).multinomial(num + 2, fractions, size=num_draws)
    low, high = np.quantile((counts[:, 0] - counts[:, 1]) / (num + 2), [0.025, 0.975])
    value = (better - worse) / num
    return Interval(value, min(float(low), value), max(float(high), value))


class Spread(NamedTuple):
    """Mean and spread over draws.

    Attributes:
        mean: The mean.
        std: The standard deviation between draws (with ``n - 1``); 0 for one draw, which shows no spread.
        num: Number of draws.
    """

    mean: float
    std: float
    num: int


def mean_and_spread(values: Sequence[float]) -> Spread:
    """Mean and standard deviation of one figure over several draws or seeds.

    Args:
        values: One figure for each draw.

    Raises:
        ValueError: If there are none.
    """
    if not values:
        raise ValueError("a mean needs at least one value, got none")
    return Spread(float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0, len(values))


def bootstrap_interval(
    metric: Callable[[Tensor, Tensor], float],
    predictions: Tensor,
    labels: Tensor,
    *,
    baseline: Tensor | None = None,
    num_draws: int = 1_000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Bootstrap: any figure with its percentile interval over test images drawn with replacement (Efron 1979,
    "Bootstrap
    methods: another look at the jackknife", Annals of Statistics 7; Efron and Tibshirani 1993, section 13.3).

    With few images, or near the ends of a figure's range, it is too narrow: for an accuracy take `confidence_interval`,
    for the difference of two `paired_difference`.

    Args:
        metric: Takes predictions and labels, returns a number.
        predictions: Tensor of shape ``[num_images, ...]``: whatever the metric takes.
        labels: Tensor of shape ``[num_images, ...]``.
        baseline: Predictions of another model for the same images: the interval is then that of the difference, both
            on the same draws.
        num_draws: Number of draws.
        level: How often the interval should hold the true value, above 0 and below 1.
        seed: Of the draws.

    Returns:
        The figure of all images, with its interval. A draw on which the metric is not a number does not count.

    Raises:
        ValueError: If the lengths differ or are 0, or the level or the number of draws is out of range.
    """
    num = len(labels)
    others = [predictions] if baseline is None else [predictions, baseline]
    if not num or any(len(each) != num for each in others):
        lengths = " and ".join(str(len(each)) for each in others)
        raise ValueError(
            f"a bootstrap needs predictions for each of at least one label, got {lengths} for {num} labels"
        )
    if not 0 < level < 1 or num_draws < 1:
        raise ValueError(f"a bootstrap needs a level between 0 and 1 and a draw, got {level} and {num_draws}")

    def figure(rows: Tensor) -> float:
        values = [float(metric(each[rows], labels[rows])) for each in others]
        return values[0] - sum(values[1:])

    generator = np.random.default_rng(seed)
    draws = (torch.from_numpy(generator.integers(0, num, num)).to(labels.device) for _ in range(num_draws))
    figures = np.array([figure(rows) for rows in draws])
    value, tail = figure(torch.arange(num, device=labels.device)), (1 - level) / 2
    figures = figures[~np.isnan(figures)]
    low, high = np.quantile(figures, [tail, 1 - tail]) if len(figures) else (math.nan, math.nan)
    return Interval(value, float(low), float(high))
