"""Figures of labelled frames by segment: segmental F1 and edit score.

A frame-wise accuracy hardly notices a sequence cut into too many segments, which these do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ssl_toolkit.evaluation.intervals import clustered_interval

OVERLAPS = (0.10, 0.25, 0.50)


class Segment(NamedTuple):
    """Frames in a row with one label.

    Attributes:
        label: The class.
        start: The first frame.
        end: The one after the last.
    """

    label: int
    start: int
    end: int


def segments(labels: NDArray[np.int64], known: NDArray[np.bool_], background: int | None = None) -> list[Segment]:
    """The segments of a sequence, in order.

    Args:
        labels: int64 array of shape ``[frames]``.
        known: bool array of shape ``[frames]``: the frames that count. A segment ends where they are interrupted.
        background: A class whose segments do not count.
    """
    if not known.any():
        return []
    frames = np.flatnonzero(known)
    own = labels[frames]
    begins = np.flatnonzero(np.concatenate([[True], (own[1:] != own[:-1]) | (np.diff(frames) > 1)]))
    ends = np.append(begins[1:], len(frames)) - 1
    found = [
        Segment(int(own[first]), int(frames[first]), int(frames[last]) + 1)
        for first, last in zip(begins.tolist(), ends.tolist(), strict=True)
    ]
    return [each for each in found if each.label != background]


def matches(predicted: Sequence[Segment], true: Sequence[Segment], overlap: float) -> tuple[int, int, int]:
    """Counts segments that are found (Lea et al. 2017, arXiv 1611.05267, section 4).

    A predicted segment is right if its intersection over union with a true one of its class is at least ``overlap``,
    and no earlier segment was matched with that one. Of several true ones it is compared with that of the largest
    intersection over union, the first of equals.

    Args:
        predicted: Segments of a sequence.
        true: Likewise.
        overlap: The threshold, in (0, 1].

    Returns:
        How many predicted segments are right, how many are wrong, and how many true ones are missed.
    """
    taken: set[int] = set()
    for each in predicted:
        best, place = 0.0, -1
        for number, other in enumerate(true):
            if other.label == each.label:
                common = min(each.end, other.end) - max(each.start, other.start)
                ratio = common / (max(each.end, other.end) - min(each.start, other.start))
                if ratio > best:
                    best, place = ratio, number
        if best >= overlap:
            taken.add(place)
    right = len(taken)
    return right, len(predicted) - right, len(true) - right


def edit_score(predicted: Sequence[Segment], true: Sequence[Segment]) -> float:
    """Edit score (Lea et al. 2016, arXiv 1602.02995): 1 minus the normalised Levenshtein distance of the labels.

    Args:
        predicted: Segments of a sequence.
        true: Likewise.

    Returns:
        In ``[0, 1]``; 1 where both are empty.
    """
    longest = max(len(predicted), len(true))
    if not longest:
        return 1.0
    row = list(range(len(true) + 1))
    for number, each in enumerate(predicted, start=1):
        before, row[0] = row[0], number
        for place, other in enumerate(true, start=1):
            before, row[place] = row[place], min(
                row[place] + 1, row[place - 1] + 1, before + (each.label != other.label)
            )  # fmt: skip
    return 1 - row[-1] / longest


class LabelledSequences:
    """What was recognised of sequences whose frames have labels, to be gathered from all processes.

    Args:
        background: As for `segments`.
    """

    def __init__(self, background: int | None = None) -> None:
        self._background = background
        self._rows: list[list[float]] = []

    def add(self, index: int, predicted: Tensor, labels: Tensor) -> None:
        """Counts a sequence in; one without a labelled frame does not count.

        Args:
            index: Its number.
            predicted: int64 tensor of shape ``[frames]``: classes.
            labels: int64 tensor of shape ``[frames]``: true ones, -1 where it is not known.
        """
        truth, found = labels.cpu().numpy(), predicted.cpu().numpy()
        known = truth >= 0
        if not known.any():
            return
        own, others = segments(found, known, self._background), segments(truth, known, self._background)
        counts = [count for overlap in OVERLAPS for count in matches(own, others, overlap)]
        frames = [int((found == truth)[known].sum()), int(known.sum())]
        self._rows.append([index, *frames, *counts, edit_score(own, others)])

    def rows(self) -> Tensor:
        """float64 tensor ``[sequences, 13]``: number; frames that are right, and all labelled ones; segments that are
        right, wrong and missed at each of `OVERLAPS`; edit score."""
        return torch.tensor(self._rows, dtype=torch.float64).view(-1, 4 + 3 * len(OVERLAPS))


def figures(rows: Tensor) -> dict[str, float]:
    """The figures of sequences whose frames are labelled, in ``[0, 1]``; empty without any.

    Args:
        rows: Of all processes, as `LabelledSequences.rows` gives them.

    Returns:
        ``top1`` of all frames, with the ends of its 95 % interval over sequences, ``top1_low`` and ``top1_high``;
        ``f1_10``, ``f1_25`` and ``f1_50`` of all segments, and ``edit``, the mean over sequences.
    """
    if not len(rows):
        return {}
    rows = rows[rows[:, 0].argsort()]  # the same order of a sum for any number of processes
    top1 = clustered_interval(rows[:, 1], rows[:, 2])
    found = {"top1": top1.value, "top1_low": top1.low, "top1_high": top1.high}
    for number, overlap in enumerate(OVERLAPS):
        right, wrong, missed = rows[:, 3 + 3 * number : 6 + 3 * number].sum(dim=0).tolist()
        total = 2 * right + wrong + missed
        found[f"f1_{round(100 * overlap)}"] = 2 * right / total if total else 1.0
    return {**found, "edit": float(rows[:, -1].mean())}
