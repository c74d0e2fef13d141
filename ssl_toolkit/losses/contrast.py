"""Contrastive cross entropy: each anchor picks among others by their similarity, a few rows at a time."""

from __future__ import annotations

from collections.abc import Callable
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

    def pick(rows: slice) -> tuple[Tensor, Tensor]:
        weights = None if targets.weights is None else targets.weights[rows]
        aim = targets._replace(classes=targets.classes[rows], weights=weights)
        with torch.autocast(anchors.device.type, enabled=False):
            similarity = similarities(anchors[rows], others, temperature, None if itself is None else itself[rows])
            hits = (similarity.detach().argmax(dim=1) == aim.heaviest).sum()
            return soft_cross_entropy(similarity, aim, reduction="sum"), hits

    return mean_by_rows(pick, len(anchors), len(others))


def mean_by_rows(
    function: Callable[[slice], tuple[Tensor, Tensor]], num_rows: int, num_columns: int
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """The means over the rows of a matrix that is never held as a whole, but made a few rows at a time.

    Args:
        function: Of some of the rows the sums of two numbers. It is called again for the gradient.
        num_rows: Of the matrix.
        num_columns: Likewise.
    """
    num = max(1, _MAX_SIMILARITIES // num_columns)
    parts = [slice(start, start + num) for start in range(0, num_rows, num)]
    if len(parts) == 1:
        found = [function(parts[0])]
    else:
        found = [checkpoint(function, part, use_reentrant=False) for part in parts]
    first, second = zip(*found, strict=True)
    return torch.stack(first).sum() / num_rows, torch.stack(second).sum() / num_rows


def similarities(
    anchors: Float[Tensor, "anchors width"],
    others: Float[Tensor, "others width"],
    temperature: float,
    itself: Int64[Tensor, " anchors"] | None = None,
) -> Float[Tensor, "anchors others"]:
    """Cosine similarities divided by the temperature. Autocast must be off, which would round them.

    Args:
        anchors: Of unit length.
        others: Likewise.
        temperature: What they are divided by.
        itself: The place of each anchor among the others, which becomes -infinity; None if it is not among them.
    """
    similarity = anchors @ others.T / temperature
    return similarity if itself is None else similarity.scatter(1, itself[:, None], float("-inf"))
