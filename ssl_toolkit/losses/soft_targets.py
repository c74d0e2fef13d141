"""Soft targets: distributions over classes, for mixed images and smoothed labels."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Mixing(NamedTuple):
    """Mixing of a batch: each sample's partner and weight.

    Attributes:
        partners: int64 tensor of shape ``[batch]``: the sample that each is mixed with, itself where it is not mixed.
        weights: Float tensor of shape ``[batch]``: how much of each is itself, 0 to 1; the rest is its partner.
    """

    partners: Tensor
    weights: Tensor


class SoftTargets(NamedTuple):
    """A distribution over the classes for each sample: weights of a few classes, and a rest that all classes get
    equally.

    Attributes:
        classes: int64 tensor of shape ``[batch, num]``; a class may come more than once.
        weights: Float tensor of the same shape, whose rows sum to 1; None where there is one class each.
        smoothing: This fraction of the whole is spread evenly over all classes.
    """

    classes: Tensor
    weights: Tensor | None
    smoothing: float

    @property
    def heaviest(self) -> Tensor:
        """The class with the largest weight: int64 tensor of shape ``[batch]``."""
        if self.weights is None:
            return self.classes[:, 0]
        return self.classes.gather(1, self.weights.argmax(dim=1, keepdim=True)).squeeze(1)

    def dense(self, num_classes: int) -> Tensor:
        """The whole distributions: float tensor of shape ``[batch, num_classes]``."""
        weights = torch.ones_like(self.classes, dtype=torch.float32) if self.weights is None else self.weights
        sparse = weights.new_zeros(len(weights), num_classes).scatter_add(1, self.classes, weights)
        return (1 - self.smoothing) * sparse + self.smoothing / num_classes


def soften(targets: Tensor, mixing: Mixing | None = None, smoothing: float = 0.0) -> SoftTargets:
    """Soft targets of a batch.

    Args:
        targets: int64 tensor of shape ``[batch]``: the class of each sample.
        mixing: What has been mixed; None for nothing.
        smoothing: Fraction that is spread evenly over all classes.
    """
    if mixing is None:
        return SoftTargets(targets[:, None], None, smoothing)
    classes = torch.stack([targets, targets[mixing.partners]], dim=1)
    return SoftTargets(classes, torch.stack([mixing.weights, 1 - mixing.weights], dim=1), smoothing)


def soft_cross_entropy(
    logits: Tensor,
    targets: SoftTargets,
    class_weights: Tensor | None = None,
    reduction: Literal["mean", "sum"] = "mean",
) -> Tensor:
    """Cross entropy with soft targets, a scalar.

    Args:
        logits: Float tensor of shape ``[batch, num_classes]``. A class whose score is -infinity is out of the question:
            nothing is spread to it.
        targets: What is aimed at.
        class_weights: Float tensor of shape ``[num_classes]``: the weight of each class in the mean, of which a soft
            target has its fraction.
        reduction: ``mean`` or ``sum`` over the batch; the sum is not weighted.
    """
    if targets.weights is None and targets.smoothing == 0:
        return F.cross_entropy(logits, targets.classes[:, 0], weight=class_weights, reduction=reduction)
    possible = logits > float("-inf")
    per_class = torch.ones_like(logits[0]) if class_weights is None else class_weights.to(logits.dtype)
    even = possible / possible.sum(dim=1, keepdim=True)
    weights = torch.ones_like(logits[:, :1]) if targets.weights is None else targets.weights.to(logits.dtype)
    aim = torch.zeros_like(logits).scatter_add(1, targets.classes, (1 - targets.smoothing) * weights)
    aim = (aim + targets.smoothing * even) * per_class
    losses = -aim * logits.log_softmax(dim=1).masked_fill(~possible, 0.0)
    return losses.sum() if reduction == "sum" else losses.sum() / aim.sum()
