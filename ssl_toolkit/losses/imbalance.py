"""Losses for classes of very different sizes: class weights, focal loss and logit adjustment."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ssl_toolkit.losses.full_precision import full_precision
from ssl_toolkit.losses.soft_targets import SoftTargets

if TYPE_CHECKING:
    from jaxtyping import Float, Int64


def class_weights(counts: Int64[Tensor, " classes"], beta: float = 1.0) -> Float[Tensor, " classes"]:
    """Class weights, larger for smaller classes; their mean over the counted samples is 1.

    A weight is the inverse of the effective number of samples, ``(1 - beta^n) / (1 - beta)`` (Cui et al. 2019, arXiv
    1901.05555, equation 2): with beta = 0 all weights are equal, with beta = 1 each is the inverse of its class's size.

    Args:
        counts: Training samples of each class; a class without any has the weight 0.
        beta: From 0 to 1.
    """
    numbers = counts.double()
    effective = numbers if beta == 1 else (1 - beta**numbers) / (1 - beta)
    weights = torch.where(counts > 0, 1 / effective.clamp(min=1e-12), 0.0)
    return (weights * numbers.sum() / (weights * numbers).sum()).float()


def log_prior(counts: Int64[Tensor, " classes"]) -> Float[Tensor, " classes"]:
    """Logarithm of each class's fraction of the training samples, for logit adjustment.

    With it added to the scores in training, these learn how likely each class were if all were of one size (Menon et
    al. 2021, arXiv 2007.07314, equation 10). A class without samples counts as half a one.

    Args:
        counts: Training samples of each class.
    """
    numbers = counts.double().clamp(min=0.5)
    return (numbers / numbers.sum()).log().float()


def focal_cross_entropy(
    logits: Float[Tensor, "batch classes"],
    targets: SoftTargets,
    focus: float = 0.0,
    weights: Float[Tensor, " classes"] | None = None,
    sample_weights: Float[Tensor, " batch"] | None = None,
) -> Float[Tensor, ""]:
    """Cross entropy in which each class has a weight, and well recognised samples count less.

    Focal loss (Lin et al. 2017, arXiv 1708.02002, equation 4) with a softmax: a class's part is multiplied by
    ``(1 - p)^focus``, where p is its probability. The sum is divided by the number of samples, not by that of the
    weights: so the loss is a mean over the samples, whatever they are batched with.

    Args:
        logits: Scores, of any float type; computed in float32 at least.
        targets: What is aimed at.
        focus: Exponent, at least 0 (gamma); 0 for the plain cross entropy.
        weights: Of the classes, as by `class_weights`; None for 1 each.
        sample_weights: How much each sample counts, at least 0; None for 1 each.
    """
    log_probabilities = full_precision(logits).log_softmax(dim=1)
    aim = targets.dense(logits.shape[1]).to(log_probabilities.dtype)
    if weights is not None:
        aim = aim * weights.to(aim)
    if focus:
        # 1 - p is 0 for a sure sample, where a power below 1 has an endless slope
        aim = aim * (1 - log_probabilities.exp()).clamp(min=1e-8).pow(focus)
    losses = -(aim * log_probabilities).sum(dim=1)
    return losses.mean() if sample_weights is None else (losses * sample_weights.to(losses)).mean()
