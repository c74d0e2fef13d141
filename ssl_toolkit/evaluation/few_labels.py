"""Linear probes on small labelled sets: what a representation is worth when labels are scarce."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ssl_toolkit.evaluation.intervals import Spread, mean_and_spread
from ssl_toolkit.evaluation.linear_probe import STRENGTHS, ProbeResult, linear_probe
from ssl_toolkit.evaluation.logistic_regression import Labelled
from ssl_toolkit.random import number, permutations, sample_keys

if TYPE_CHECKING:
    from jaxtyping import Int64


def few_label_draws(
    labels: Int64[Tensor, " samples"], per_class: int, num_draws: int, seed: int = 0
) -> list[Int64[Tensor, " labelled"]]:
    """Random small labelled sets with equally many images of each class.

    Args:
        labels: int64 tensor of shape ``[num_images]``: classes from 0; images with -1 are left out.
        per_class: Images of each class; a class with fewer gives all it has.
        num_draws: How many sets. They are drawn independently of each other and may overlap.
        seed: Of the draws.

    Returns:
        For each draw the places of its images in ``labels``, ascending, as an int64 tensor.

    Raises:
        ValueError: If ``per_class`` or ``num_draws`` is below 1 or no image has a label.
    """
    if per_class < 1 or num_draws < 1:
        raise ValueError(f"few-label draws need at least 1 image a class and 1 draw, got {per_class} and {num_draws}")
    if not len(labels) or int(labels.max()) < 0:
        raise ValueError("few-label draws need labelled images, but none has a label")
    classes = [(labels == label).nonzero().squeeze(1) for label in labels.unique() if label >= 0]
    draws = []
    for draw in range(num_draws):
        keys = sample_keys(number("few labels", seed), draw, torch.arange(len(classes)))
        drawn = [images[permutations(key, len(images))[:per_class]] for images, key in zip(classes, keys, strict=True)]
        draws.append(torch.cat(drawn).sort().values)
    return draws


class FewLabelResult(NamedTuple):
    """Linear probes on several small labelled sets.

    Attributes:
        top1: Mean and spread of the test accuracy over the sets.
        probes: One for each set.
    """

    top1: Spread
    probes: list[ProbeResult]


def few_label_probe(
    train: Labelled, val: Labelled, test: Labelled, draws: Sequence[Tensor], *, strengths: Sequence[float] = STRENGTHS
) -> FewLabelResult:
    """One linear probe for each small labelled set, all on the same test images.

    The strength of the penalty is still chosen on all of ``val``, which may hold more labels than the small set does:
    give a small ``val``, or a single strength, where that matters (Oliver et al. 2018, arXiv 1804.09170, section 4.6).

    Args:
        train: Features and labels to draw from.
        val: Features and labels that choose the strength.
        test: Features and labels that are measured once for each set.
        draws: Places in ``train``, as from `few_label_draws`.
        strengths: As in `linear_probe`.

    Returns:
        Mean, spread and the probes.

    Raises:
        ValueError: As `linear_probe`, or if there are no draws.
    """
    probes = [linear_probe((train[0][draw], train[1][draw]), val, test, strengths=strengths) for draw in draws]
    return FewLabelResult(mean_and_spread([probe.top1 for probe in probes]), probes)
