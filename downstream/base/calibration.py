"""Calibration: how often a classifier is right where it is so sure, and the temperature that makes both agree.

Guo et al. 2017, On Calibration of Modern Neural Networks (arXiv 1706.04599).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from ssl_toolkit.distributed.collectives import gather_uneven
from ssl_toolkit.distributed.ranks import world_size
from ssl_toolkit.evaluation.classes import NUM_BINS, confidence_bins

Scores = Sequence[tuple[Tensor, Tensor]]


class Reliability:
    """Counts how sure predictions are, and how often they are right.

    Args:
        device: Where processes exchange tensors.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        # by bin: samples, the sum of their confidences, and those that are right
        self._bins = torch.zeros(NUM_BINS, 3, dtype=torch.float64)

    def add(self, probabilities: Tensor, labels: Tensor) -> None:
        """Counts samples in.

        Args:
            probabilities: Float tensor of shape ``[batch, num_classes]``.
            labels: int64 tensor of shape ``[batch]``.
        """
        confidence, predicted = probabilities.max(dim=1)
        places = confidence_bins(confidence)
        rows = torch.stack([torch.ones_like(confidence), confidence, (predicted == labels).to(confidence)], dim=1)
        self._bins.index_add_(0, places, rows)

    def error(self) -> float:
        """Expected calibration error of the samples of all processes, in [0, 1].

        The confidence of the predicted class is divided into 15 bins of equal width; the error is the mean over the
        samples of the distance between the mean confidence of their bin and the accuracy in it. NaN without samples.
        """
        bins = summed(self._bins, self._device)
        num = float(bins[:, 0].sum())
        return float((bins[:, 1] - bins[:, 2]).abs().sum()) / num if num else math.nan


def summed(own: Tensor, device: torch.device) -> Tensor:
    """The sum of a tensor over all processes, on the CPU, to the bit the same in each."""
    if world_size() == 1:
        return own
    return gather_uneven(own.to(device).unsqueeze(0))[0].cpu().sum(dim=0)


@torch.no_grad()
def scores_of(task: Any, batches: Iterable[Any]) -> list[tuple[Tensor, Tensor]]:
    """Scores and labels of batches, as a test computes them: float32 ``[batch, num_classes]`` and int64, on the CPU."""
    strategy, found = task.trainer.strategy, []
    for batch in batches:
        with strategy.precision_plugin.test_step_context():
            moved = strategy.batch_to_device(batch)
            scores = task.scores(moved)
        labels = task.labels_of(moved)
        known = labels >= 0
        found.append((scores[known].float().cpu(), labels[known].cpu()))
    return found


@torch.no_grad()
def fit_temperature(scores: Scores, total: Callable[[Tensor], Tensor] = lambda own: own) -> float | None:
    """The temperature T with which ``softmax(scores / T)`` has the least cross entropy.

    The cross entropy is convex in 1 / T; Newton's method finds where its slope is 0, halving where it leaves the range
    that is left.

    Args:
        scores: Pairs of the scores of classes, float tensor of shape ``[num, num_classes]``, and of labels, int64
            tensor of shape ``[num]``.
        total: Sums a float64 tensor over all processes.

    Returns:
        Above 0; None where no temperature is the best: every sample is recognised, so that ever lower ones are better,
        or the scores tell so little that ever higher ones are; or a score is no number.
    """
    wrong, even = total(
        _sums(scores, lambda each, own: (each.max(dim=1).values - own, each.mean(dim=1) - own))
    ).tolist()
    if not (wrong > 0 and even < 0):
        return None
    low, high, inverse = 0.0, math.inf, 1.0
    for _ in range(200):
        slope, curvature = total(_sums(scores, lambda each, own, inverse=inverse: _slopes(each, own, inverse))).tolist()
        low, high = (inverse, high) if slope < 0 else (low, inverse)
        step = inverse - slope / curvature if curvature > 0 else math.nan
        most = high if math.isfinite(high) else 8 * inverse
        if not low < step <= most:
            step = most if math.isinf(high) else math.sqrt(low * high) if low else high / 8
        if abs(step - inverse) <= 1e-12 * inverse:
            break
        inverse = step
    return 1 / inverse


def _sums(scores: Scores, of: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> Tensor:
    """The sums of two numbers of each sample, from its scores and that of its class: float64 ``[2]``."""
    sums = torch.zeros(2, dtype=torch.float64)
    for each, labels in scores:
        exact = each.double()
        first, second = of(exact, exact.gather(1, labels.unsqueeze(1)).squeeze(1))
        sums += torch.stack([first.sum(), second.sum()])
    return sums


def _slopes(scores: Tensor, own: Tensor, inverse: float) -> tuple[Tensor, Tensor]:
    """First and second derivative of each sample's cross entropy by 1 / T."""
    probabilities = (scores * inverse).softmax(dim=1)
    mean = (probabilities * scores).sum(dim=1)
    variance = (probabilities * (scores - mean.unsqueeze(1)).square()).sum(dim=1)
    return mean - own, variance
