"""The feature queue: embeddings of former batches, as negatives."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_toolkit.losses.full_precision import full_precision

if TYPE_CHECKING:
    from jaxtyping import Float


class FeatureQueue(nn.Module):
    """Feature queue: the newest embeddings of a teacher, first in, first out (He et al. 2020, arXiv 1911.05722, section
    3.1).

    It is saved with the run. It begins with random vectors, and its place moves on the device, so that no step waits
    for a GPU.

    Args:
        size: How many embeddings it holds, at least 1.
        width: Of an embedding.

    Attributes:
        features: Float tensor of shape ``[size, width]``, each row of length 1.
    """

    features: Tensor
    place: Tensor

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        if size < 1:
            raise ValueError(f"a feature queue holds at least 1 embedding, got a size of {size}")
        self.register_buffer("features", F.normalize(torch.randn(size, width), dim=1))
        self.register_buffer("place", torch.zeros((), dtype=torch.int64))

    def similarities(self, queries: Float[Tensor, "batch width"]) -> Float[Tensor, "batch size"]:
        """The cosine similarity of each query with each embedding in the queue, in float32 at least.

        Args:
            queries: Float tensor of shape ``[num, width]``, of any length.
        """
        with torch.autocast(queries.device.type, enabled=False):
            queries = F.normalize(full_precision(queries), dim=1)
            return queries @ self.features.to(queries.dtype).T

    @torch.no_grad()
    def nearest(self, queries: Float[Tensor, "batch width"]) -> Float[Tensor, "batch width"]:
        """The embedding in the queue with the greatest cosine similarity to each query, of length 1, without gradient.

        Args:
            queries: Float tensor of shape ``[num, width]``, of any length.
        """
        return self.features[self.similarities(queries).argmax(dim=1)]

    @torch.no_grad()
    def enqueue(self, keys: Float[Tensor, "batch width"]) -> None:
        """Puts embeddings into the places of the oldest ones.

        Call it from `ssl_toolkit.task.Task.after_optimizer_step`, with the embeddings of all micro-batches and
        processes in the order of the samples: so it is the same for any number of processes and after a resume.

        Args:
            keys: Float tensor of shape ``[num, width]``; normalised here. Of more than ``size`` the last ones stay.
        """
        size = len(self.features)
        keys = F.normalize(keys.to(self.features.dtype), dim=1)[-size:]
        places = (self.place + torch.arange(len(keys), device=self.place.device)) % size
        self.features.index_copy_(0, places, keys)
        self.place.add_(len(keys)).remainder_(size)
