"""Prototypes: directions that embeddings are compared with."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_toolkit.losses.full_precision import full_precision

if TYPE_CHECKING:
    from jaxtyping import Float


class Prototypes(nn.Module):
    """Prototypes: the cosine similarities of embeddings with trained vectors.

    The prototypes of SwAV (Caron et al. 2020, arXiv 2006.09882, section 3.1) and the last layer of DINO's head, which
    is weight-normalised with a length of 1 (Caron et al. 2021, arXiv 2104.14294, appendix C).

    Args:
        width: Of an embedding.
        num: How many prototypes, at least 2.

    Attributes:
        weight: Float tensor of shape ``[num, width]``; only its rows' directions count.
    """

    def __init__(self, width: int, num: int) -> None:
        super().__init__()
        if num < 2:
            raise ValueError(f"model.num_prototypes is {num}, expected at least 2")
        self.weight = nn.Parameter(F.normalize(torch.randn(num, width), dim=1))
        self._kept: Tensor | None = None

    def forward(self, embeddings: Float[Tensor, "batch width"]) -> Float[Tensor, "batch prototypes"]:
        """Cosine similarities, computed in float32 at least.

        Args:
            embeddings: Of any length.
        """
        with torch.autocast(embeddings.device.type, enabled=False):
            return F.linear(F.normalize(full_precision(embeddings), dim=1), F.normalize(self.weight, dim=1))

    @torch.no_grad()
    def keep(self) -> None:
        """Notes the vectors before an optimizer step that is not to move them; `restore` takes them back after it.

        A gradient of 0 or none would not do: optimizers move by their momentum and by weight decay too, and one that
        has seen none for long makes larger steps when there are some.
        """
        self._kept = self.weight.detach().clone()

    @torch.no_grad()
    def restore(self) -> None:
        """Takes the vectors back that were noted since the last step, if there are any."""
        if self._kept is not None:
            self.weight.copy_(self._kept)
            self._kept = None
