"""Classes one by one: the accuracy of each, and what is taken for what; calibration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ssl_toolkit.evaluation.intervals import Interval, wilson_interval

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int64

NUM_BINS = 15
_SHOWN = 5


@dataclass(frozen=True)
class ClassRow:
    """One class.

    Attributes:
        name: Of the class.
        num: Its test images.
        top1: Share of them that are classified rightly, with its 95 % interval; None without test images.
    """

    name: str
    num: int
    top1: Interval | None


@dataclass(frozen=True)
class Classes:
    """The linear probe of one representation, class by class.

    Attributes:
        representation: ``pooled`` or the name of a stage.
        rows: One for each class, in the order of their numbers.
        confusion: The confusion matrix, of which only counts above 0 are listed, by rows: the number of the class, that
            of the predicted class, and how many test images of the one are taken for the other. `matrix` gives all.
    """

    representation: str
    rows: list[ClassRow]
    confusion: list[tuple[int, int, int]]

    def matrix(self) -> Int64[Tensor, "classes classes"]:
        """int64 tensor: how many images of each class (row) are taken for each class (column)."""
        matrix = torch.zeros(len(self.rows), len(self.rows), dtype=torch.int64)
        for label, predicted, num in self.confusion:
            matrix[label, predicted] = num
        return matrix

    def words(self) -> list[str]:
        """The worst classes and the most frequent confusions, up to five of each, as lines of text; none if all is
        right."""
        measured = [(row, row.top1) for row in self.rows if row.top1 is not None and row.top1.value < 1]
        worst = sorted(measured, key=lambda each: (each[1].value, -each[0].num))[:_SHOWN]
        wrong = sorted(((num, label, other) for label, other, num in self.confusion if label != other), reverse=True)
        if not worst:
            return []
        classes = ", ".join(
            f"{row.name} {100 * top1.value:.1f} % ({100 * top1.low:.1f}-{100 * top1.high:.1f}, {row.num:,} images)"
            for row, top1 in worst
        )
        confusions = ", ".join(
            f"{self.rows[label].name} for {self.rows[other].name} ({num:,} of {self.rows[label].num:,})"
            for num, label, other in wrong[:_SHOWN]
        )
        what = f"linear probe of {self.representation}"
        return [f"worst classes, {what}: {classes}", f"most often taken one for another: {confusions}"]


def by_class(
    labels: Int64[Tensor, " images"], predicted: Int64[Tensor, " images"], names: Sequence[str], representation: str
) -> Classes:
    """The accuracy of each class with its Wilson interval, and the confusion matrix.

    Args:
        labels: int64 tensor of shape ``[num_images]``: numbers of classes.
        predicted: Likewise, as a classifier says.
        names: Of all classes, in the order of their numbers.
        representation: What the classifier saw.
    """
    num_classes = len(names)
    matrix = (labels * num_classes + predicted).bincount(minlength=num_classes**2).view(num_classes, num_classes)
    nums = matrix.sum(dim=1).tolist()
    right = matrix.diagonal().tolist()
    rows = [
        ClassRow(name, num, wilson_interval(each, num) if num else None)
        for name, num, each in zip(names, nums, right, strict=True)
    ]
    confusion = [(label, other, int(matrix[label, other])) for label, other in matrix.nonzero().tolist()]
    return Classes(representation, rows, confusion)


def confidence_bins(confidence: Float[Tensor, " images"], num_bins: int = NUM_BINS) -> Int64[Tensor, " images"]:
    """The bin of each probability, from 0: in bin b are those above ``b / num_bins`` up to ``(b + 1) / num_bins``."""
    return ((confidence.double() * num_bins).ceil().long() - 1).clamp(0, num_bins - 1)


def calibration_error(
    confidence: Float[Tensor, " images"], correct: Bool[Tensor, " images"], num_bins: int = NUM_BINS
) -> float:
    """Expected calibration error: how far the probability that a classifier gives its prediction is from being right.

    ``sum_b (n_b / n) |accuracy_b - confidence_b|`` over bins of equal width of the confidence, ``((b - 1) / B, b / B]``
    (Naeini et al. 2015; Guo et al. 2017, "On Calibration of Modern Neural Networks", arXiv 1706.04599, equation 3).
    With few images in the bins it is above 0 for a perfectly calibrated classifier, too.

    Args:
        confidence: Float tensor of shape ``[num_images]``: the probability of the predicted class, in ``[0, 1]``.
        correct: bool tensor of shape ``[num_images]``.
        num_bins: Number of bins.

    Returns:
        A number in ``[0, 1]``; NaN without images.
    """
    bins = confidence_bins(confidence, num_bins)
    gaps = correct.double() - confidence.double()
    sums = torch.zeros(num_bins, dtype=torch.float64, device=gaps.device).index_add_(0, bins, gaps)
    return float(sums.abs().sum() / len(gaps)) if len(gaps) else float("nan")
