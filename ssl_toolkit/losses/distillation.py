"""Cross entropy between a student's and a teacher's distributions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ssl_toolkit.losses.full_precision import full_precision

if TYPE_CHECKING:
    from jaxtyping import Float


def soft_assignment_loss(
    logits: Float[Tensor, "batch classes"], targets: Float[Tensor, "batch classes"]
) -> Float[Tensor, ""]:
    """Cross entropy of a student's logits with given distributions, the mean over the batch.

    The loss of SwAV (Caron et al. 2020, arXiv 2006.09882, equation 2), DINO (Caron et al. 2021, arXiv 2104.14294,
    equation 2) and ReSSL (Zheng et al. 2021, arXiv 2107.09282, section 3), which differ in where the distributions
    come from. The mean over a batch needs nothing of the other processes.

    Args:
        logits: Of the student, already divided by its temperature; computed in float32 at least.
        targets: Rows with a sum of 1; no gradient reaches them.
    """
    with torch.autocast(logits.device.type, enabled=False):
        return -(full_precision(targets).detach() * full_precision(logits).log_softmax(dim=1)).sum(dim=1).mean()


def entropy(distributions: Float[Tensor, "batch classes"]) -> Float[Tensor, ""]:
    """Mean entropy of distributions in nats: 0 for certain ones, at most the logarithm of the number of classes."""
    return torch.special.entr(full_precision(distributions)).sum(dim=1).mean()
