"""Few-label curve: the linear probe of the pooled features by the number of labelled images of a class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from ssl_toolkit.evaluation.few_labels import few_label_draws
from ssl_toolkit.evaluation.intervals import mean_and_spread
from ssl_toolkit.evaluation.linear_probe import linear_probe
from ssl_toolkit.evaluation.logistic_regression import Labelled
from ssl_toolkit.evaluation.progress import Steps
from ssl_toolkit.evaluation.shortcut_rows import Weights

Splits = tuple[Labelled, Labelled, Labelled]


@dataclass(frozen=True)
class LabelPoint:
    """Linear probes of small labelled sets of one size, with one set of weights.

    Attributes:
        weights: ``given`` or ``random``.
        per_class: Labelled images of a class, in training; as many again at most choose the penalty.
        num_labelled: Training images of each set: fewer than classes times ``per_class`` where a class has not so many.
        values: Test accuracy of each set.
        mean: Their mean.
        std: Their standard deviation (divided by one less); 0 for a single set.
    """

    weights: Literal["given", "random"]
    per_class: int
    num_labelled: int
    values: list[float]
    mean: float
    std: float


@dataclass(frozen=True)
class LabelCurve:
    """The few-label curve with the given weights and with random ones, on the same labelled sets.

    Attributes:
        num_classes: Of the training images.
        points: By weights, then by the number of labelled images.
    """

    num_classes: int
    points: list[LabelPoint]

    def words(self) -> list[str]:
        """The curves as lines of text."""
        given = [each for each in self.points if each.weights == "given"]
        lines = [
            f"few labels: linear probe of pooled, mean ± standard deviation over {len(given[0].values)} labelled sets; "
            "as many validation images at most choose the penalty"
        ]
        for weights in dict.fromkeys(each.weights for each in self.points):
            shown = ", ".join(
                f"{100 * each.mean:.1f} ± {100 * each.std:.1f} % with {each.per_class}"
                for each in self.points
                if each.weights == weights
            )
            lines.append(f"  {weights} weights: {shown} a class")
        short = [each for each in given if each.num_labelled < each.per_class * self.num_classes]
        if short:
            lines.append(
                f"  with {short[0].per_class} a class: some classes have fewer training images "
                f"({short[0].num_labelled:,} in all)"
            )
        return lines


def check_few_labels(few_labels: Sequence[int], num_draws: int) -> None:
    """Raises a ValueError for numbers of labelled images, or of sets, that cannot be."""
    if few_labels and min(few_labels) < 1:
        raise ValueError(f"--few_labels is {list(few_labels)}, expected numbers of labelled images of at least 1")
    if len(set(few_labels)) < len(few_labels):
        raise ValueError(f"--few_labels is {list(few_labels)}, which has a number twice")
    if num_draws < 1:
        raise ValueError(f"--few_label_draws is {num_draws}, expected at least 1")


def measure_label_curve(
    splits: Mapping[Weights, Splits], few_labels: Sequence[int], num_draws: int, seed: int, steps: Steps
) -> LabelCurve | None:
    """Fits the linear probes of a few-label curve.

    Training images are drawn with equally many of each class, and so are validation images, which choose the penalty:
    with all of them a probe of ten labels would be tuned by a thousand (Oliver et al. 2018, arXiv 1804.09170, section
    4.6). All weights get the same sets; the test images are all there are.

    Args:
        splits: By weights, pooled features and labels of training, validation and test images, in the same order.
        few_labels: Labelled images of a class, ascending or not; none for no curve.
        num_draws: Labelled sets of each number.
        seed: Of the sets.
        steps: Told of each number.

    Returns:
        The curve; None if it is not asked for.
    """
    if not few_labels:
        return None
    points, num_classes = [], 0
    for weights, (train, val, test) in splits.items():
        num_classes = len(train[1].unique())
        for per_class in sorted(few_labels):
            steps.begin(f"{num_draws} linear probes of {per_class} labels a class with {weights} weights")
            draws = few_label_draws(train[1], per_class, num_draws, seed)
            choosing = few_label_draws(val[1], per_class, num_draws, seed + 1)
            values = [
                linear_probe(_some(train, chosen), _some(val, chooses), test).top1
                for chosen, chooses in zip(draws, choosing, strict=True)
            ]
            spread = mean_and_spread(values)
            std = spread.std if num_draws > 1 else 0.0
            points.append(LabelPoint(weights, per_class, len(draws[0]), values, spread.mean, std))
    return LabelCurve(num_classes, points)


def _some(labelled: Labelled, places: Tensor) -> Labelled:
    return labelled[0][places], labelled[1][places]
