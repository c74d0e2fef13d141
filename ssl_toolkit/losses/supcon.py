"""The supervised contrastive loss: all views of a class are partners."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ssl_toolkit.distributed.collectives import gather, gather_uneven
from ssl_toolkit.losses.contrast import mean_by_rows, normalized, similarities

if TYPE_CHECKING:
    from jaxtyping import Float, Int64


def supcon(
    first: Float[Tensor, "batch width"],
    second: Float[Tensor, "batch width"],
    labels: Int64[Tensor, " batch"],
    temperature: float,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Supervised contrastive loss (Khosla et al. 2020, arXiv 2004.11362, equation 2, the sum outside the logarithm).

    An embedding attracts the other view of its image and both views of all images with its label. An image without a
    label (below 0) has its other view alone, and is everybody else's negative: with no labels at all it is NT-Xent.
    Under several processes the others are those of all processes.

    Args:
        first: Embeddings of the first views; normalised here, in float32 at least.
        second: Embeddings of the second views, likewise.
        labels: Of the images; below 0 for none.
        temperature: Divides the cosine similarities.

    Returns:
        The mean loss over this process's 2N embeddings, and the fraction of them whose nearest is a partner.
    """
    first, all_first, places = normalized(first)
    second, all_second, _ = normalized(second)
    anchors, others = torch.cat([first, second]), torch.cat([all_first, all_second])
    itself = torch.cat([places, places + len(all_first)])
    own_labels = labels.repeat(2)
    all_labels = (gather(labels) if torch.is_grad_enabled() else gather_uneven(labels)[0]).repeat(2)
    image = torch.arange(len(all_first), device=labels.device).repeat(2)

    def pick(rows: slice) -> tuple[Tensor, Tensor]:
        with torch.autocast(anchors.device.type, enabled=False):
            similarity = similarities(anchors[rows], others, temperature, itself[rows])
            same = (own_labels[rows, None] == all_labels) & (own_labels[rows, None] >= 0)
            partners = same | (image[itself[rows], None] == image)
            partners = partners.scatter(1, itself[rows, None], False)
            hits = partners.gather(1, similarity.detach().argmax(dim=1, keepdim=True)).sum()
            logits = similarity.log_softmax(dim=1).masked_fill(~partners, 0.0)
            return -(logits.sum(dim=1) / partners.sum(dim=1)).sum(), hits

    return mean_by_rows(pick, len(anchors), len(others))
