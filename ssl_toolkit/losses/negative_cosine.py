"""Negative cosine similarity: regression of embeddings on the sphere."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_toolkit.losses.full_precision import full_precision

if TYPE_CHECKING:
    from jaxtyping import Float


def negative_cosine(
    predictions: Float[Tensor, "batch width"], targets: Float[Tensor, "batch width"]
) -> Float[Tensor, ""]:
    """Negative cosine similarity, as the mean squared distance of unit vectors, ``2 - 2 cos`` (Grill et al. 2020, arXiv
    2006.07733, equation 2).

    From 0 (equal directions) to 4 (opposite ones); 2 for directions that have nothing to do with each other. It is
    twice SimSiam's negative cosine (Chen and He 2021, arXiv 2011.10566, equation 1) plus 2. The mean over a batch needs
    nothing of the other processes: DDP's average of the gradients is that of one process.

    Args:
        predictions: Of the student; normalised here, in float32 at least.
        targets: What they shall point to, likewise; no gradient reaches them.
    """
    return symmetric_cosine(predictions, targets.detach())


def symmetric_cosine(first: Float[Tensor, "batch width"], second: Float[Tensor, "batch width"]) -> Float[Tensor, ""]:
    """The same with a gradient for both: 0 for equal directions, 4 for opposite ones.

    Args:
        first: Embeddings of the first views; normalised here, in float32 at least.
        second: Embeddings of the second views, likewise.
    """
    with torch.autocast(first.device.type, enabled=False):
        return 2 - 2 * F.cosine_similarity(full_precision(first), full_precision(second), dim=1).mean()
