"""Dense InfoNCE, the loss of DenseCL: each place of a feature map picks the one of another map that looks alike."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_toolkit.losses.full_precision import full_precision
from ssl_toolkit.losses.info_nce import info_nce

if TYPE_CHECKING:
    from jaxtyping import Float, Int64


def dense_info_nce(
    queries: Float[Tensor, "batch places width"],
    keys: Float[Tensor, "batch others width"],
    partners: Int64[Tensor, "batch places"],
    temperature: float,
    negatives: Float[Tensor, "negatives width"],
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Dense InfoNCE (Wang et al. 2021, arXiv 2011.09157, equation 2): `info_nce` of every place of a map.

    The negatives belong to none of the images, so there is nothing to gather. Computed in float32 at least, also under
    autocast.

    Args:
        queries: Embeddings of the places of the query's map; normalised here.
        keys: Of the key's map, likewise; it may have another number of places.
        partners: The place of the key's map that each query shall find, as `similar_places` gives them.
        temperature: Divides the similarities.
        negatives: Of unit length, such as a queue's.

    Returns:
        The mean loss over this process's places, and the fraction of them to which their key is the most similar.
    """
    chosen = keys.take_along_dim(partners[:, :, None], dim=1)
    return info_nce(queries.flatten(0, 1), chosen.flatten(0, 1), temperature, negatives)


@torch.no_grad()
def similar_places(
    queries: Float[Tensor, "batch places channels"], keys: Float[Tensor, "batch others channels"]
) -> Int64[Tensor, "batch places"]:
    """For each place of a feature map the most similar place of another map of the same image, by the cosine.

    Wang et al. 2021, arXiv 2011.09157, equation 4: the maps are the backbones', before any projector.

    Args:
        queries: The places of the query's map; normalised here, in float32 at least.
        keys: Of the key's map.

    Returns:
        Numbers of places of ``keys``; of equal ones the first.
    """
    with torch.autocast(queries.device.type, enabled=False):
        queries, keys = (F.normalize(full_precision(each), dim=2) for each in (queries, keys))
        return (queries @ keys.mT).argmax(dim=2)
