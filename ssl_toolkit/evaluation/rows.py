"""Rows of an evaluation's table: plain data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ssl_toolkit.evaluation.intervals import Interval


@dataclass(frozen=True)
class Row:
    """One representation with one set of weights. Accuracies are fractions in ``[0, 1]``; those of the headline are of
    the test images, with whatever was chosen (``knn_k``, ``strength``) chosen on the validation images.

    Attributes:
        weights: ``given`` or ``random``.
        representation: ``pooled`` or the name of a stage.
        num_features: Its width.
        knn: Test accuracy of kNN with its 95 % interval.
        knn_k: The number of neighbours, the best on the validation images (of equals the smallest).
        knn_val: Validation accuracy for each number of neighbours.
        knn_test: Test accuracy for each number of neighbours, to compare with published figures; chooses nothing.
        linear: Test accuracy of the linear probe with its 95 % interval.
        linear_val: Its validation accuracy.
        strength: Of its L2 penalty.
        spread: `ssl_toolkit.evaluation.spread` of the test features.
        rank_me: `ssl_toolkit.evaluation.rank_me` of the test features.
        knn_mean_class: Test accuracy of kNN for each class, averaged over the classes of which there are test images.
        linear_mean_class: Likewise of the linear probe.
        linear_ece: Expected calibration error of the linear probe on the test images (`calibration_error`).
    """

    weights: Literal["given", "random"]
    representation: str
    num_features: int
    knn: Interval
    knn_k: int
    knn_val: dict[int, float]
    knn_test: dict[int, float]
    linear: Interval
    linear_val: float
    strength: float
    spread: float
    rank_me: float
    knn_mean_class: float | None = None
    linear_mean_class: float | None = None
    linear_ece: float | None = None


def best_representation(rows: Sequence[Row]) -> str:
    """The representation whose linear probe is the best on the validation images; of equals the first."""
    return max(rows, key=lambda row: row.linear_val).representation


@dataclass(frozen=True)
class Difference:
    """Accuracy with the given weights minus that with random weights, on the same test images, with 95 % intervals.

    Attributes:
        representation: ``pooled`` or the name of a stage.
        knn: Of kNN.
        linear: Of the linear probe.
    """

    representation: str
    knn: Interval
    linear: Interval


@dataclass(frozen=True)
class EnsembleRow:
    """Several linear classifiers of the pooled features together.

    Attributes:
        weights: ``given`` or ``random``.
        kind: ``bagging`` or ``boosting``.
        num_members: How many they are; boosting may end early.
        strength: Of each member's L2 penalty.
        top1: Test accuracy with its 95 % interval.
        over_probe: Test accuracy minus that of the linear probe, with a 95 % interval.
    """

    weights: Literal["given", "random"]
    kind: Literal["bagging", "boosting"]
    num_members: int
    strength: float
    top1: Interval
    over_probe: Interval


@dataclass(frozen=True)
class FoldsRow:
    """The linear probe of the pooled features over folds of the training and validation images.

    Attributes:
        weights: ``given`` or ``random``.
        values: The accuracy on each fold.
        mean: Their mean.
        std: Their standard deviation, which is not the error of the mean.
    """

    weights: Literal["given", "random"]
    values: list[float]
    mean: float
    std: float
