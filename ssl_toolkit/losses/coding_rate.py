"""Total coding rate of embeddings, and the loss of EMP-SSL."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_toolkit.distributed.collectives import all_reduce_sum
from ssl_toolkit.losses.full_precision import full_precision

if TYPE_CHECKING:
    from jaxtyping import Float


def emp_ssl(
    embeddings: Float[Tensor, "crops batch width"], invariance: float = 200.0, distortion: float = 0.2
) -> tuple[Float[Tensor, ""], Float[Tensor, ""], Float[Tensor, ""]]:
    """EMP-SSL: the embeddings of many crops spread over all directions, and those of one image agree.

    Tong et al. 2023, arXiv 2304.03977, section 3, who maximise the mean over the crops of ``R + invariance * cosine``:
    R is the total coding rate of a crop's embeddings over the batch, the cosine is that of an embedding with the mean
    embedding of its image. Here this is subtracted from a constant, `most_coding_rate` plus ``invariance``, so that 0
    is the best that there is; the gradient is the published one. Computed in float32 at least, also under autocast.

    Args:
        embeddings: Normalised here; at least one crop.
        invariance: The paper's lambda. The coding rate grows with the width, the cosine does not, so the weight belongs
            to a width.
        distortion: The paper's epsilon squared, above 0.

    Returns:
        The loss; the coding rate as a fraction of the most that the width allows, 0 to 1; and the mean cosine, 0 to 1.
        The coding rate is that of the batches of all processes together, the cosine that of this process's samples.
    """
    with torch.autocast(embeddings.device.type, enabled=False):
        unit = F.normalize(full_precision(embeddings), dim=2)
        rate, most = coding_rate(unit, distortion).mean(), most_coding_rate(unit.shape[2], distortion)
        agreement = F.cosine_similarity(unit, unit.mean(dim=0, keepdim=True), dim=2).mean()
        loss = (most - rate) + invariance * (1 - agreement)
    return loss, rate.detach() / most, agreement.detach()


def coding_rate(unit: Float[Tensor, "crops batch width"], distortion: float = 0.2) -> Float[Tensor, " crops"]:
    """Total coding rate of each crop's embeddings Z over the batch: ``R = 1/2 logdet(I + d / (b e^2) Z^T Z)``, in nats.

    Ma et al. 2007, "Segmentation of multivariate mixed data via lossy data coding and compression", as Tong et al. 2023
    (arXiv 2304.03977, equation 1) use it. The Gram matrices of the processes' parts are summed, so that W processes
    compute what one would, also with parts that differ in size: width^2 numbers a crop to send. They are factorised by
    Cholesky, which asks a GPU for nothing.

    Args:
        unit: Of length 1 each, float32 at least.
        distortion: e^2, above 0.

    Returns:
        The same in every process.
    """
    _, batch, width = unit.shape
    count = all_reduce_sum(unit.new_full((), batch))
    gram = all_reduce_sum(unit.mT @ unit) * (width / (count * distortion))
    # the matrix is positive definite: its eigenvalues are 1 at least
    factor, _ = torch.linalg.cholesky_ex(gram + torch.eye(width, dtype=unit.dtype, device=unit.device))
    return factor.diagonal(dim1=1, dim2=2).log().sum(dim=1)


def most_coding_rate(width: int, distortion: float = 0.2, rank: int | None = None) -> float:
    """The largest total coding rate of unit vectors: they fill as many directions as they can, each alike.

    Args:
        width: Of the vectors.
        distortion: As in `coding_rate`.
        rank: How many directions they can fill, at least 1: the number of vectors, if that is less than the width.
    """
    rank = width if rank is None else min(rank, width)
    return 0.5 * rank * math.log1p(width / (rank * distortion))
