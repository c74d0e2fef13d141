"""Decoupled contrastive losses: NT-Xent without the partner among what it is compared with."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ssl_toolkit.distributed.collectives import all_reduce_sum
from ssl_toolkit.losses.contrast import mean_by_rows, normalized, similarities

if TYPE_CHECKING:
    from jaxtyping import Float


def dcl(
    first: Float[Tensor, "batch width"],
    second: Float[Tensor, "batch width"],
    temperature: float,
    sigma: float | None = None,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Decoupled contrastive loss (Yeh et al. 2022, arXiv 2110.06848, equations 5 and 6).

    NT-Xent has the partner's similarity in its denominator, which makes the gradient small wherever the partner is
    already near. Here the denominator has the other images alone: the loss may be below 0; of a single image it is 0.
    Under several processes the others, and the mean of the weights, are those of all processes.

    Args:
        first: Embeddings of the first views; normalised here, in float32 at least.
        second: Embeddings of the second views, likewise.
        temperature: Divides the cosine similarities.
        sigma: Of the weighted form, DCLW: the partner counts ``2 - exp(cos / sigma) / mean(exp(cos / sigma))``, more
            where the views are far apart; above 0 (the paper: 0.5). None weights all alike. The weights have a
            gradient.

    Returns:
        The mean loss over this process's 2N embeddings, and the fraction of them whose partner is the most similar.
    """
    first, all_first, places = normalized(first)
    second, all_second, _ = normalized(second)
    anchors, others = torch.cat([first, second]), torch.cat([all_first, all_second])
    itself = torch.cat([places, places + len(all_first)])
    partner = torch.cat([places + len(all_first), places])
    weights = _weights(first, second, sigma).repeat(2)

    def pick(rows: slice) -> tuple[Tensor, Tensor]:
        with torch.autocast(anchors.device.type, enabled=False):
            similarity = similarities(anchors[rows], others, temperature, itself[rows])
            aim = partner[rows, None]
            hits = similarity.detach().argmax(dim=1) == aim[:, 0]
            right = similarity.gather(1, aim)[:, 0]
            if len(others) <= 2:  # of a single image there is nothing to repel
                return (0 * right).sum(), hits.sum()
            repelled = similarity.scatter(1, aim, float("-inf")).logsumexp(dim=1)
            return (repelled - weights[rows] * right).sum(), hits.sum()

    return mean_by_rows(pick, len(anchors), len(others))


def _weights(first: Tensor, second: Tensor, sigma: float | None) -> Tensor:
    """What the partner counts, for each pair of this process."""
    if sigma is None:
        return first.new_ones(len(first))
    with torch.autocast(first.device.type, enabled=False):
        # less than e of any temperature would overflow: cosines are at most 1
        near = torch.exp(((first * second).sum(dim=1) - 1) / sigma)
        mean = all_reduce_sum(near.sum()) / all_reduce_sum(near.new_full((), len(near)))
        return 2 - near / mean
