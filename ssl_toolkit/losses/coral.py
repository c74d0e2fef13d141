"""CORAL: ordinal regression by yes-or-no questions that share their features."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_toolkit.losses.full_precision import full_precision

if TYPE_CHECKING:
    from jaxtyping import Float, Int64


def coral(
    logits: Float[Tensor, "batch levels"],
    targets: Int64[Tensor, " batch"],
    sample_weights: Float[Tensor, " batch"] | None = None,
) -> Float[Tensor, ""]:
    """Binary cross entropy of "the class is above k", averaged over all levels k and samples.

    Cao, Mirjalili and Raschka 2020 (arXiv 1901.07884), equation 4, where the levels are summed.

    Args:
        logits: Scores of "above class k", k = 0 ... classes - 2; of any float type, computed in float32 at least.
        targets: Classes, in their order, from 0.
        sample_weights: How much each sample counts, at least 0; None for 1 each.
    """
    levels = torch.arange(logits.shape[1], device=logits.device)
    above = (targets[:, None] > levels).to(full_precision(logits).dtype)
    weights = None if sample_weights is None else sample_weights[:, None].to(above)
    return F.binary_cross_entropy_with_logits(full_precision(logits), above, weight=weights)


def coral_probabilities(logits: Float[Tensor, "batch levels"]) -> Float[Tensor, "batch classes"]:
    """The probability of each class: the differences of those of being above k; they sum to 1.

    Args:
        logits: Scores of "above class k"; one that is larger than an earlier one counts as the earlier one, since to be
            above a higher class cannot be likelier.
    """
    # not cummin, for which ONNX has no operation
    lowest = list(itertools.accumulate(full_precision(logits).unbind(dim=1), torch.minimum))
    above = torch.stack(lowest, dim=1).sigmoid()
    ones = torch.ones_like(above[:, :1])
    return torch.cat([ones, above], dim=1) - torch.cat([above, torch.zeros_like(ones)], dim=1)
