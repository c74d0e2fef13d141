"""Pairs of images."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from downstream.base.sequence_heads.head import SequenceHead
from ssl_toolkit.errors import counted
from ssl_toolkit.modules.multiplicative import MultiplicativeInteraction

if TYPE_CHECKING:
    from jaxtyping import Float, Int64


class PairFeatures(NamedTuple):
    """The features of a batch of pairs of images: float tensors of shape ``[batch, num_features]``.

    Attributes:
        first: Of the first images.
        second: Of the second ones.
    """

    first: Tensor
    second: Tensor


class PairHead(SequenceHead):
    """Pair head: compares two images, the first with the second, by products of their features.

    The scores are quadratic forms of the two (`ssl_toolkit.modules.multiplicative.MultiplicativeInteraction`): they can
    tell whether two images are alike, which a sum of a term of each cannot. Sequences of exactly two frames are what a
    table with a second image gives (``data.columns.second``).

    Args:
        rank: Of these forms, at least 1; None for full ones, with the square of the number of features for each class.
        dropout: Probability in [0, 1) of dropping a feature.
    """

    def __init__(self, rank: int | None = None, dropout: float = 0.0) -> None:
        super().__init__()
        if rank is not None and rank < 1:
            raise ValueError(f"PairHead: rank is {rank}, expected at least 1")
        self.rank = rank
        self.dropout = nn.Dropout(dropout)

    def build(self, num_features: int, num_classes: int) -> None:
        self.classifier = MultiplicativeInteraction(num_features, num_features, num_classes, self.rank)

    def forward(
        self, features: Float[Tensor, "batch longest width"], lengths: Int64[Tensor, " batch"]
    ) -> Float[Tensor, "batch classes"]:
        if (other := lengths[lengths != 2]).numel():
            raise ValueError(
                f"PairHead compares two images, but a sequence has {counted(int(other[0]), 'frames')}: name a column "
                "of second images with --data.columns.second, or take another head"
            )
        return self.compare(PairFeatures(*features[:, :2].unbind(1)))

    def compare(self, features: PairFeatures) -> Float[Tensor, "batch classes"]:
        """Scores pairs: float tensor of shape ``[batch, num_classes]``."""
        first, second = self.dropout(torch.stack(features, dim=1)).unbind(1)
        return self.classifier(first, second)
