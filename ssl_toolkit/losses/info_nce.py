"""InfoNCE: each query picks its key among others, those of its batch or a queue."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_toolkit.losses.contrast import contrast, normalized
from ssl_toolkit.losses.full_precision import full_precision
from ssl_toolkit.losses.soft_targets import Mixing, soften

if TYPE_CHECKING:
    from jaxtyping import Float


def info_nce(
    queries: Float[Tensor, "batch width"],
    keys: Float[Tensor, "batch width"],
    temperature: float,
    negatives: Float[Tensor, "negatives width"] | None = None,
    mixing: Mixing | None = None,
    smoothing: float = 0.0,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """InfoNCE (van den Oord et al. 2018, arXiv 1807.03748, equation 4) of cosine similarities.

    Without ``negatives`` a query picks among the keys of the batch, those of all processes: the N-pair loss. If its
    queries are mixed it is i-Mix (Lee et al. 2021, arXiv 2010.08887, section 3): a query's target is its own key by its
    weight, its partner's by the rest. With ``negatives`` it picks among its own key and these (He et al. 2020, arXiv
    1911.05722, equation 1): there is nothing to gather or to mix. Computed in float32 at least, also under autocast.

    Args:
        queries: Normalised here.
        keys: The key of each query; normalised here.
        temperature: Divides the similarities.
        negatives: Keys that belong to none of the queries, of unit length, such as a queue's.
        mixing: Of the queries; partners are samples of this process.
        smoothing: Fraction of the target that is spread evenly over all that a query picks among.

    Returns:
        The mean loss over this process's queries, and the fraction of them to which the key of what they are most of is
        the most similar.
    """
    if negatives is not None:
        return _among_negatives(queries, keys, temperature, negatives, smoothing)
    keys, all_keys, places = normalized(keys)
    queries = F.normalize(full_precision(queries), dim=1)
    return contrast(queries, all_keys, temperature, soften(places, mixing, smoothing))


def _among_negatives(
    queries: Tensor, keys: Tensor, temperature: float, negatives: Tensor, smoothing: float
) -> tuple[Tensor, Tensor]:
    with torch.autocast(queries.device.type, enabled=False):
        queries, keys = (F.normalize(full_precision(each), dim=1) for each in (queries, keys))
        right = (queries * keys).sum(dim=1, keepdim=True)
        logits = torch.cat([right, queries @ negatives.to(queries.dtype).T], dim=1) / temperature
        targets = torch.zeros(len(logits), dtype=torch.int64, device=logits.device)
        hits = logits.detach().argmax(dim=1) == 0
        return F.cross_entropy(logits, targets, label_smoothing=smoothing), hits.float().mean()


def least_info_nce(num: int, temperature: float) -> float:
    """The least InfoNCE of a batch: keys are met exactly and lie as far apart as they can, at the corners of a regular
    simplex.

    Args:
        num: Keys in the batch, of all processes, at least 1.
        temperature: Divides the similarities.
    """
    apart = num / max(1, num - 1)
    return math.log1p((num - 1) * math.exp(-apart / temperature))
