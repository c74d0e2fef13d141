"""Loss curves of a run: under- and overfitting."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from statistics import mean, median

from ssl_toolkit.health.findings import Finding

_FEWEST_TRAIN = 20
_FEWEST_VAL = 5
_RISE = 0.05
_FALL = 0.03
_FEWEST_STEPS = 1000  # healthy runs of 300 steps were seen to have fallen by 2 %


def read_curves(train: Sequence[float], val: Sequence[float], steps: int | None = None) -> Finding | None:
    """Judges the losses of a run.

    Overfitting: the validation loss has passed its least by more than 5 %, and by more than it scatters, while the
    training loss went on falling. Underfitting: the training loss has fallen by less than 3 %.

    Args:
        train: The training loss over the run; what is not finite is left out. Fewer than 20 figures tell nothing.
        val: The validation loss after each epoch; fewer than 5 figures tell nothing.
        steps: Of the run: fewer than 1,000 that have not lowered the loss are a slow start and no underfitting. None if
            there were enough.

    Returns:
        What is wrong, or None.
    """
    train, val = [each for each in train if math.isfinite(each)], [each for each in val if math.isfinite(each)]
    if len(train) < _FEWEST_TRAIN:
        return None
    few = max(3, len(train) // 10)
    first, last = median(train[:few]), median(train[-few:])
    if len(val) >= _FEWEST_VAL:
        best = min(range(len(val)), key=val.__getitem__)
        ends = val[-max(2, len(val) // 10) :]
        scatter = median([abs(after - before) for before, after in pairwise(val)])
        rise = mean(ends) - val[best]
        then = round((best + 1) / len(val) * len(train))  # of the training, when the validation was best
        before = median(train[max(0, then - few) : then] or train[:few])
        if rise > max(_RISE * abs(val[best]), 2 * scatter) and last < before:
            return Finding(
                "overfitting",
                f"The validation loss was least after {best + 1} of {len(val)} epochs ({val[best]:.3g}) and has risen "
                f"to {mean(ends):.3g} since, while the training loss fell from {before:.3g} to {last:.3g}.",
                "Train for fewer epochs, or use more images, a stronger augmentation, weight decay or dropout.",
            )
    if first - last < _FALL * abs(first) and (steps is None or steps >= _FEWEST_STEPS):
        return Finding(
            "underfitting",
            f"The training loss has hardly fallen, from {first:.3g} to {last:.3g}: nothing is learned.",
            "Run ssl-toolkit diagnose on the recipe; then try another learning rate, a longer run, a larger network.",
        )
    return None
