"""Contrastive cross entropy, for NT-Xent and InfoNCE: each anchor picks among others by their similarity."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ssl_toolkit.distributed.collectives import gather, gather_uneven
from ssl_toolkit.distributed.ranks import rank
from ssl_toolkit.losses.full_precision import full_precision
from ssl_toolkit.losses.soft_targets import SoftTargets, soft_cross_entropy

if TYPE_CHECKING:
    from jaxtyping import Float, Int64

# similarities held at a time: 2^24 float32 are 64 MiB
_MAX_SIMILARITIES = 1 << 24


def normalized(
    embeddings: Float[Tensor, "batch width"],
) -> tuple[Float[Tensor, "batch width"], Float[Tensor, "everywhere width"], Int64[Tensor, " batch"]]:
    """This process's embeddings of unit length, those of all processes, and the places of the former in the latter.

    Args:
        embeddings: Of any length; computed in float32 at least. Their number may differ between the processes where no
            gradient is asked for.
    """
    own = F.normalize(full_precision(embeddings), dim=1)
    places = torch.arange(len(own), device=own.device)
    if torch.is_grad_enabled():
        return own, gather(own), places + rank() * len(own)
    everywhere, start = gather_uneven(own)
    return own, everywhere, places + start


def contrast(
    anchors: Float[Tensor, "anchors width"],
    others: Float[Tensor, "others width"],
    temperature: float,
    targets: SoftTargets,
    itself: Int64[Tensor, " anchors"] | None = None,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Contrastive cross entropy of the anchors' similarities, a few rows at a time.

    Of a large batch the matrix of all similarities is never held: it is made a few rows at a time, and again for the
    gradient, which changes nothing about the result.

    Args:
        anchors: Of unit length.
        others: What they pick among, of unit length.
        temperature: Divides the similarities.
        targets: Places among the others, for each anchor.
        itself: The place of each anchor among the others, which it cannot pick; None if it is not among them.

    Returns:
        The anchors' mean loss, and the fraction of them that have their heaviest target the nearest.
    """
    rows = max(1, _MAX_SIMILARITIES // len(others))
    parts = []
    for start in range(0, len(anchors), rows):
        chosen = slice(start, start + rows)
        weights = None if targets.weights is None else targets.weights[chosen]
        chunk = targets._replace(classes=targets.classes[chosen], weights=weights)
        arguments = (others, temperature, anchors[chosen], chunk, None if itself is None else itself[chosen])
        if rows >= len(anchors):
            parts.append(_pick(*arguments))
        else:
            parts.append(checkpoint(_pick, *arguments, use_reentrant=False))
    losses, hits = zip(*parts, strict=True)
    return torch.stack(losses).sum() / len(anchors), torch.stack(hits).sum() / len(anchors)


def _pick(
    others: Tensor, temperature: float, anchors: Tensor, targets: SoftTargets, itself: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The summed cross entropy of some of the anchors, and how many of them have their target the nearest."""
    with torch.autocast(anchors.device.type, enabled=False):
        similarity = anchors @ others.T / temperature
        if itself is not None:
            similarity = similarity.scatter(1, itself[:, None], float("-inf"))
        hits = (similarity.detach().argmax(dim=1) == targets.heaviest).sum()
        return soft_cross_entropy(similarity, targets, reduction="sum"), hits
