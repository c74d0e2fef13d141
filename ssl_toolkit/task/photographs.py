"""Accuracy of a pretext task that photographs are known to allow."""

from __future__ import annotations

from typing import NamedTuple


class PhotographAccuracy(NamedTuple):
    """The highest accuracy of a pretext task on photographs that a source reports with its known shortcuts closed.

    Attributes:
        metric: Name of the accuracy among the figures of the task's loss, such as ``position_top1``.
        highest: The accuracy, in [0, 1].
        source: Where that is reported.
        closed_by: The options that close shortcuts, for a sentence.
    """

    metric: str
    highest: float
    source: str
    closed_by: str
