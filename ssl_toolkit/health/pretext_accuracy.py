"""Pretext accuracy far above what photographs allow: a sign of a shortcut."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median

from ssl_toolkit.health.findings import Finding
from ssl_toolkit.task.photographs import PhotographAccuracy

# of the answers that the source leaves wrong. Photographs differ: those of single centred objects give more than the
# source has (52.0 instead of 40 % of patch positions on Caltech-101 in 88 minutes, with colours dropped by
# view.grayscale), which is a fifth of the way; a shortcut goes most of it
_FAR = 0.5
_FEWEST = 20


def judge_pretext_accuracy(
    known: PhotographAccuracy, metrics: Mapping[str, Sequence[float]], weights: str
) -> Finding | None:
    """Judges the accuracy of a pretext task: that on validation images at the end, or else the latest of training.

    Args:
        known: What photographs are known to allow.
        metrics: The run's metrics by name; values that are not finite are gaps.
        weights: The run's weights file, for the advice.

    Returns:
        What is wrong, or None; also where there are fewer than 20 figures of training and none of validation.
    """
    val, train = (
        [each for each in metrics.get(f"{split}/{known.metric}", ()) if math.isfinite(each)]
        for split in ("val", "train")
    )
    if not val and len(train) < _FEWEST:
        return None
    split, found = ("validation", val[-1]) if val else ("training", median(train[-_FEWEST // 2 :]))
    limit = known.highest + _FAR * (1 - known.highest)
    if found <= limit:
        return None
    return Finding(
        "shortcut",
        f"The accuracy of the pretext task on {split} images is {100 * found:.1f} %, far above the "
        f"{100 * known.highest:.0f} % that photographs are known to allow ({known.source}): it is likely solved by a "
        "shortcut, without a look at the objects.",
        f"Check what the features tell: ssl-toolkit evaluate --weights {weights} --data.path LABELLED --shortcuts "
        f"true. Close it: {known.closed_by}.",
    )
