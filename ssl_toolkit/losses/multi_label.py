"""Multi-label losses: several yes-or-no questions about a sample, of which some answers may be unknown."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_toolkit.losses.full_precision import full_precision

if TYPE_CHECKING:
    from jaxtyping import Float


def binary_cross_entropy(
    logits: Float[Tensor, "batch labels"], targets: Float[Tensor, "batch labels"]
) -> Float[Tensor, ""]:
    """Binary cross entropy, averaged over all samples and labels; what is unknown adds nothing.

    The sum is divided by the number of all answers, known or not: so the loss is a mean over the samples, whatever they
    are batched with.

    Args:
        logits: Scores, of any float type; computed in float32 at least.
        targets: 1 or 0; NaN where the answer is not known.
    """
    known, scores = targets.isfinite(), full_precision(logits)
    losses = F.binary_cross_entropy_with_logits(scores, targets.nan_to_num(0.0).to(scores), reduction="none")
    return (losses * known).mean()


def asymmetric_loss(
    logits: Float[Tensor, "batch labels"],
    targets: Float[Tensor, "batch labels"],
    negative_focus: float = 4.0,
    positive_focus: float = 0.0,
    margin: float = 0.05,
) -> Float[Tensor, ""]:
    """Asymmetric loss: many labels are absent from nearly every sample, and the easy ones of these count little.

    Ridnik et al. 2021 (arXiv 2009.14119), equations 4 to 7; their defaults for images of several objects.

    Args:
        logits: Scores, of any float type; computed in float32 at least.
        targets: 1 or 0; NaN where the answer is not known, which adds nothing.
        negative_focus: Exponent of the probability of an absent label, at least 0 (gamma-).
        positive_focus: Exponent of the probability that a present label lacks, at least 0 (gamma+).
        margin: An absent label's probability counts from here on, from 0 to 1 (excluded).
    """
    known = targets.isfinite()
    scores = full_precision(logits)
    present = targets.nan_to_num(0.0).to(scores)
    missing = torch.sigmoid(-scores)  # 1 - p, exact where p is near 1
    shifted = (1 - missing - margin).clamp(min=0.0)
    positives = present * missing.pow(positive_focus) * F.logsigmoid(scores)
    negatives = (1 - present) * shifted.pow(negative_focus) * torch.log1p(-shifted)
    return -((positives + negatives) * known).mean()
