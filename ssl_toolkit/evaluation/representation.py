"""Collapse metrics without labels: spread and effective rank.

They see different things: a point collapse leaves the rank intact, a dimensional collapse leaves the spread intact.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float


def spread(embeddings: Float[Tensor, ...]) -> float:
    """Spread of normalised embeddings: 1 is uniform on the sphere, 0 a single point.

    The standard deviation of each coordinate of the L2-normalised embeddings over the images, averaged over the
    coordinates, times ``sqrt(d)``: Chen and He 2021, "Exploring Simple Siamese Representation Learning",
    arXiv 2011.10566, section 4.1. Non-negative features (after a ReLU) lie in one corner of the sphere: they
    stay clearly below 1 when healthy.

    Args:
        embeddings: float tensor of shape ``[num_images, d]``.

    Returns:
        A number in ``[0, 1]``.

    Raises:
        ValueError: If the tensor is not two-dimensional or has no images.
    """
    _check(embeddings)
    unit = F.normalize(embeddings.double(), dim=1)
    return float(unit.std(dim=0, correction=0).mean()) * math.sqrt(embeddings.shape[1])


def rank_me(embeddings: Float[Tensor, ...]) -> float:
    """RankMe, the effective rank of embeddings: the exponential of the entropy of their normalised singular values.

    Garrido et al. 2023, "RankMe: Assessing the downstream performance of pretrained self-supervised representations by
    their rank", arXiv 2210.02885, equation 1: ``exp(-sum_k p_k log p_k)``, ``p_k = s_k / sum(s) + 1e-7``. The
    embeddings are not centred. It is at most ``min(num_images, d)``, so compare figures of equally many images only.

    Args:
        embeddings: float tensor of shape ``[num_images, d]``.

    Returns:
        A number from 1 to ``min(num_images, d)``; 0 if all embeddings are zero, NaN if one is not finite.

    Raises:
        ValueError: If the tensor is not two-dimensional or has no images.
    """
    _check(embeddings)
    if not torch.isfinite(embeddings).all():
        return math.nan
    matrix = embeddings.double()
    # the smaller Gram matrix has the squared singular values, at a fraction of the cost of a decomposition
    gram = matrix.T @ matrix if matrix.shape[0] >= matrix.shape[1] else matrix @ matrix.T
    singular = torch.linalg.eigvalsh(gram).clamp(min=0.0).sqrt()
    if not singular.sum() > 0:
        return 0.0
    p = singular / singular.sum() + 1e-7
    return float(torch.exp(-(p * p.log()).sum()))


def _check(embeddings: Tensor) -> None:
    if embeddings.dim() != 2 or not embeddings.numel():
        raise ValueError(f"expected embeddings of shape [num_images, d], got {list(embeddings.shape)}")
