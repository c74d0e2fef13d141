"""Cross-correlation of two embeddings, and the Barlow Twins loss."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ssl_toolkit.distributed.collectives import all_reduce_sum, standardize
from ssl_toolkit.losses.full_precision import full_precision

if TYPE_CHECKING:
    from jaxtyping import Float


def barlow_twins(
    first: Float[Tensor, "batch width"], second: Float[Tensor, "batch width"], off_diagonal: float = 0.005
) -> tuple[Float[Tensor, ""], Float[Tensor, ""], Float[Tensor, ""]]:
    """Barlow Twins loss: (1 - c)^2 over the diagonal of the correlation, weighted c^2 over the rest.

    Zbontar et al. 2021, arXiv 2103.03230, equation 1.

    Args:
        first: Embeddings of the first views.
        second: Embeddings of the second views.
        off_diagonal: The paper's lambda.

    Returns:
        The loss of the batches of all processes together, the mean of the correlation's diagonal, and the root mean
        square of the rest.
    """
    with torch.autocast(first.device.type, enabled=False):
        correlation = cross_correlation(full_precision(first), full_precision(second))
        width, diagonal = len(correlation), correlation.diagonal()
        # without its first element, each row of width + 1 ends with one of the diagonal
        rest = correlation.flatten()[1:].view(width - 1, width + 1)[:, :-1].square().sum()
        loss = (1 - diagonal).square().sum() + off_diagonal * rest
        redundancy = (rest.detach() / max(1, width * (width - 1))).sqrt()
    return loss, diagonal.detach().mean(), redundancy


def cross_correlation(
    first: Float[Tensor, "batch width"], second: Float[Tensor, "batch width"]
) -> Float[Tensor, "width width"]:
    """Cross-correlation of each dimension of the first embeddings with each of the second, over all processes.

    Zbontar et al. 2021, arXiv 2103.03230, equation 2. Means, variances and products are those of the global batch, so
    that W processes compute what one would; the statistics of one process's part are those of a smaller batch, which
    has another loss. The products of the parts are summed, not the embeddings gathered: so each process computes its
    part of them, and batches may differ in size. There and back that is 4 width^2 numbers to send; gathered embeddings
    would be 6 batch x width and are fewer where the global batch is smaller than two thirds of the width, but then
    every process computes all of the products.

    Args:
        first: float32 at least.
        second: Likewise.

    Returns:
        The same in every process.
    """
    first, second = standardize(torch.cat([first, second], dim=1)).chunk(2, dim=1)
    return all_reduce_sum(first.T @ second) / all_reduce_sum(first.new_full((), len(first)))
