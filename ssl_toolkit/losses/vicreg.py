"""The three terms of VICReg: variance, invariance, covariance."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_toolkit.distributed.collectives import all_reduce_sum
from ssl_toolkit.losses.full_precision import full_precision

if TYPE_CHECKING:
    from jaxtyping import Float

_EPS = 1e-4  # added to variances: Bardes et al. 2022, equation 2


class Spread(NamedTuple):
    """How embeddings are spread over a batch.

    Attributes:
        variance: Mean over the dimensions of what their standard deviation lacks to 1: from 0 to 1.
        covariance: Sum of the squared covariances between different dimensions, over the number of dimensions.
    """

    variance: Tensor
    covariance: Tensor


def invariance(first: Float[Tensor, "batch width"], second: Float[Tensor, "batch width"]) -> Float[Tensor, ""]:
    """Invariance term: mean squared difference of two views' embeddings over images and dimensions.

    Bardes, Ponce, LeCun 2022, arXiv 2105.04906, equation 5 divides by the number of images alone; the published weights
    of 25, 25 and 1 belong to the authors' code, which divides by that of dimensions, too.

    Args:
        first: Embeddings of the first views, not normalised; computed in float32 at least.
        second: Embeddings of the second views.
    """
    return F.mse_loss(full_precision(first), full_precision(second))


def spread(embeddings: Float[Tensor, "batch width"]) -> Spread:
    """Variance and covariance terms of one view's embeddings, over the batches of all processes.

    Bardes, Ponce, LeCun 2022, arXiv 2105.04906, equations 1 to 4, with 1 for the standard deviation that is asked for.

    Args:
        embeddings: Not normalised; computed in float32 at least. Of a single image the variance counts as 0.
    """
    with torch.autocast(embeddings.device.type, enabled=False):
        embeddings = full_precision(embeddings)
        num = all_reduce_sum(embeddings.new_full((), len(embeddings)))
        centred = embeddings - all_reduce_sum(embeddings.sum(dim=0)) / num
        covariance = all_reduce_sum(centred.T @ centred) / (num - 1).clamp(min=1)
        variances = covariance.diagonal()
        lacking = F.relu(1 - (variances + _EPS).sqrt()).mean()
        between = (covariance.square().sum() - variances.square().sum()) / len(variances)
        return Spread(lacking, between)
