"""NT-Xent, the loss of SimCLR."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ssl_toolkit.losses.contrast import contrast, normalized
from ssl_toolkit.losses.soft_targets import soften

if TYPE_CHECKING:
    from jaxtyping import Float


def nt_xent(
    first: Float[Tensor, "batch width"],
    second: Float[Tensor, "batch width"],
    temperature: float,
    smoothing: float = 0.0,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """NT-Xent: normalised temperature-scaled cross entropy (Chen et al. 2020, arXiv 2002.05709, equation 1).

    Each embedding picks its partner among the 2N - 1 others. Under several processes the others are those of all
    processes, and the mean of the processes' losses and gradients is that of one process with the global batch.
    Computed in float32 at least, also under autocast, and a few rows at a time (see `contrast`).

    Args:
        first: Embeddings of the first views; normalised here.
        second: Embeddings of the second views, likewise.
        temperature: Divides the cosine similarities.
        smoothing: Fraction of the target that is spread evenly over the 2N - 1 others.

    Returns:
        The mean loss over this process's 2N embeddings, and the fraction of them whose partner is the most similar.
    """
    first, all_first, places = normalized(first)
    second, all_second, _ = normalized(second)
    itself = torch.cat([places, places + len(all_first)])
    partner = torch.cat([places + len(all_first), places])
    targets = soften(partner, smoothing=smoothing)
    return contrast(torch.cat([first, second]), torch.cat([all_first, all_second]), temperature, targets, itself)
