"""Truncated mean squared error between neighbouring frames, against labels that change too often."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ssl_toolkit.losses.full_precision import full_precision

if TYPE_CHECKING:
    from jaxtyping import Float, Int64


def truncated_mse(
    logits: Float[torch.Tensor, "batch longest classes"], lengths: Int64[torch.Tensor, " batch"], most: float = 4.0
) -> Float[torch.Tensor, " batch"]:
    """Truncated mean squared error of the change of log-probabilities from frame to frame.

    Farha and Gall 2019, arXiv 1903.01945, equations 8 to 10: the mean over the frames and classes of
    ``min(|log p(t) - log p(t - 1)|, most)^2``, whose gradient goes to ``p(t)`` alone.

    Args:
        logits: Scores of the classes of each frame; those beyond the end of a sequence are not read.
        lengths: How many frames each sequence has, at least 1.
        most: Larger changes count as this one, so that a label may still change.

    Returns:
        Float tensor of shape ``[batch]``: of each sequence, 0 for a single frame.
    """
    after = torch.arange(1, logits.shape[1], device=logits.device) >= lengths.unsqueeze(1)
    # what is there may be no number, which times 0 would stay none
    clean = full_precision(logits).masked_fill(
        torch.arange(logits.shape[1], device=logits.device)[None, :, None] >= lengths[:, None, None], 0.0
    )
    logs = clean.log_softmax(dim=2)
    changes = (logs[:, 1:] - logs[:, :-1].detach()).abs().clamp(max=most).square()
    return changes.masked_fill(after.unsqueeze(2), 0.0).mean(dim=2).sum(dim=1) / lengths
