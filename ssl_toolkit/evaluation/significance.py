"""Significance: paired tests of two classifiers on the same test images, and Holm's correction for several of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Int64

DRAWS = 1_000_000
_DRAWS_AT_ONCE = 100_000


def mcnemar_exact(better: int, worse: int) -> float:
    """McNemar's test, exact and two-sided: whether two classifiers are right equally often on the same images.

    McNemar 1947, "Note on the sampling error of the difference between correlated proportions or percentages". Only
    images count on which one of both is right; if both are equally good, each of these is a fair coin. The p-value is
    ``min(1, 2 P(X <= min(better, worse)))`` of the binomial distribution, computed in whole numbers.

    Args:
        better: Images on which only the first is right.
        worse: Images on which only the second is.

    Returns:
        The p-value, in ``(0, 1]``; 1 where both are right on the same images.
    """
    num = better + worse
    total, ways = 0, 1
    for wins in range(min(better, worse) + 1):
        total += ways
        ways = ways * (num - wins) // (wins + 1)
    return min(1.0, 2 * total / 2**num)


def paired_permutation_test(differences: Int64[Tensor, " units"], *, num_draws: int = DRAWS, seed: int = 0) -> float:
    """Sign-flip permutation test, two-sided: whether paired differences are as often in favour of one as of the other.

    Fisher 1935, "The Design of Experiments", section 21. If both classifiers are equally good, the sign of each
    difference is a fair coin. The p-value is the share of drawn signs whose sum is at least as far from 0, the observed
    ones counted among them (Phipson and Smyth 2010), so it is at least ``1 / (num_draws + 1)``. Where no difference is
    above 1 it is McNemar's test, and exact.

    Args:
        differences: int64 tensor of shape ``[num_units]``: for each image, or each group of images that belong
            together, how many times more often the first classifier is right.
        num_draws: How many draws of all signs.
        seed: Of the draws.

    Returns:
        The p-value, in ``(0, 1]``.
    """
    values = differences.cpu().numpy()
    sizes, counts = np.unique(np.abs(values), return_counts=True)
    if not len(sizes) or sizes[-1] <= 1:
        return mcnemar_exact(int((values > 0).sum()), int((values < 0).sum()))
    generator, observed, as_far, left = np.random.default_rng(seed), abs(int(values.sum())), 1, num_draws
    while left:
        num = min(left, _DRAWS_AT_ONCE)
        # of equal differences only the number of positive signs matters
        sums = sum(
            int(size) * (2 * generator.binomial(count, 0.5, num) - count)
            for size, count in zip(sizes, counts, strict=True)
        )
        as_far += int((np.abs(sums) >= observed).sum())
        left -= num
    return as_far / (num_draws + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's correction: p-values adjusted for their number, so that the chance of any false claim is kept.

    Holm 1979, "A simple sequentially rejective multiple test procedure". The smallest of m is multiplied by m, the next
    one by ``m - 1`` and so on; none is below the one before it, nor above 1. It holds whatever the tests depend on each
    other.

    Args:
        p_values: In any order.

    Returns:
        The adjusted ones in the same order.
    """
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = highest
    return adjusted
