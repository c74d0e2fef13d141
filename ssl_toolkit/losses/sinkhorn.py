"""Sinkhorn-Knopp: soft assignments of samples to prototypes that use all prototypes equally."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ssl_toolkit.distributed.collectives import all_reduce_max, all_reduce_sum
from ssl_toolkit.distributed.ranks import rank, world_size
from ssl_toolkit.losses.full_precision import full_precision

if TYPE_CHECKING:
    from jaxtyping import Bool, Float


@torch.no_grad()
def sinkhorn(
    scores: Float[Tensor, "batch prototypes"],
    epsilon: float,
    iterations: int = 3,
    more: Float[Tensor, "others prototypes"] | None = None,
    more_counts: Bool[Tensor, ""] | None = None,
) -> Float[Tensor, "batch prototypes"]:
    """Sinkhorn-Knopp assignments (Cuturi 2013, arXiv 1306.0895), as SwAV has them (Caron et al. 2020, arXiv 2006.09882,
    equation 3 and appendix A.1).

    ``exp(scores / epsilon)`` is scaled in turns so that each prototype has an equal part of all samples, and each
    sample sums to 1. The samples are those of all processes; nothing but the prototypes' sums is sent.

    Args:
        scores: Of this process's samples; computed in float32 at least. Batches may differ in size.
        epsilon: Above 0: small for hard assignments.
        iterations: At least 1.
        more: Scores of further samples that take part and are the same in every process, such as a queue's.
        more_counts: Whether ``more`` takes part, as a tensor, so that no step waits for a GPU; None for yes.

    Returns:
        The assignments of ``scores``, each row with a sum of 1, without gradient.
    """
    with torch.autocast(scores.device.type, enabled=False):
        mine = full_precision(scores)
        num = len(mine)
        absent = None
        if more is not None:  # each process has a part of what all have
            mine = torch.cat([mine, full_precision(more)[rank() :: world_size()]])
            if more_counts is not None:
                absent = (torch.arange(len(mine), device=mine.device) >= num) & ~more_counts
                absent = absent[:, None]
        # in logarithms, since exponentials of small epsilons underflow
        assigned = mine / epsilon
        for _ in range(iterations):
            counted = assigned if absent is None else assigned.masked_fill(absent, -math.inf)
            largest = all_reduce_max(counted.amax(dim=0))
            assigned = assigned - largest - all_reduce_sum((counted - largest).exp().sum(dim=0)).log()
            assigned = assigned.log_softmax(dim=1)
        return assigned[:num].exp()
