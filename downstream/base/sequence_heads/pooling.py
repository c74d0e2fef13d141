"""Heads that are blind to the order of the frames: what a sequence is without it, and what order has to beat."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor, nn

from downstream.base.sequence_heads.head import SequenceHead, padding_mask
from ssl_toolkit.errors import nearest

if TYPE_CHECKING:
    from jaxtyping import Float, Int64

Pooling = Literal["mean", "max", "mean_max"]


class PoolingHead(SequenceHead):
    """Pooling head: the mean or the maximum of each feature over the frames, and a linear classifier.

    It gives the same answer for the frames in any order, so it says what the order is worth: where a class lies in the
    order alone it stays at chance.

    Args:
        pooling: "mean", "max", or "mean_max" (both, side by side).
        dropout: Probability in [0, 1) of dropping an input of the classifier.
    """

    blind_to_order = True

    def __init__(self, pooling: Pooling = "mean", dropout: float = 0.0) -> None:
        super().__init__()
        if pooling not in get_args(Pooling):
            raise ValueError(
                f"PoolingHead: pooling is {pooling!r}, expected mean, max or mean_max"
                f"{nearest(pooling, get_args(Pooling))}"
            )
        self.pooling = pooling
        self.dropout = nn.Dropout(dropout)

    def build(self, num_features: int, num_classes: int) -> None:
        self.classifier = nn.Linear(num_features * (2 if self.pooling == "mean_max" else 1), num_classes)

    def forward(
        self, features: Float[Tensor, "batch longest width"], lengths: Int64[Tensor, " batch"]
    ) -> Float[Tensor, "batch classes"]:
        padding = padding_mask(lengths, features.shape[1]).unsqueeze(2)
        pooled: list[Tensor] = []
        if self.pooling != "max":
            pooled.append(features.masked_fill(padding, 0.0).sum(dim=1) / lengths.unsqueeze(1))
        if self.pooling != "mean":
            pooled.append(features.masked_fill(padding, -torch.inf).amax(dim=1))
        return self.classifier(self.dropout(torch.cat(pooled, dim=1)))


class AttentionPoolingHead(SequenceHead):
    """Attention pooling head: a mean of the frames, weighted by what each of them shows, and a linear classifier.

    Gated attention of multiple-instance learning (Ilse, Tomczak and Welling 2018, arXiv 1802.04712, equations 7 to 9):
    for sequences a few of whose frames tell the class. It gives the same answer for the frames in any order.

    Args:
        hidden: Width of the layer that judges a frame, at least 1.
        dropout: Probability in [0, 1) of dropping an input of the classifier.
    """

    blind_to_order = True

    def __init__(self, hidden: int = 128, dropout: float = 0.0) -> None:
        super().__init__()
        if hidden < 1:
            raise ValueError(f"AttentionPoolingHead: hidden is {hidden}, expected at least 1")
        self.hidden = hidden
        self.dropout = nn.Dropout(dropout)

    def build(self, num_features: int, num_classes: int) -> None:
        self.judge = nn.Linear(num_features, self.hidden)
        self.gate = nn.Linear(num_features, self.hidden)
        # a bias would add the same to all frames
        self.weigh = nn.Linear(self.hidden, 1, bias=False)
        self.classifier = nn.Linear(num_features, num_classes)

    def forward(
        self, features: Float[Tensor, "batch longest width"], lengths: Int64[Tensor, " batch"]
    ) -> Float[Tensor, "batch classes"]:
        # padding has the weight 0, and 0 times infinity would still be NaN
        features = features.masked_fill(padding_mask(lengths, features.shape[1]).unsqueeze(2), 0.0)
        pooled = (self.attention(features, lengths).unsqueeze(2) * features).sum(dim=1)
        return self.classifier(self.dropout(pooled))

    def attention(
        self, features: Float[Tensor, "batch longest width"], lengths: Int64[Tensor, " batch"]
    ) -> Float[Tensor, "batch longest"]:
        """The weight of each frame: float tensor of shape ``[batch, longest]`` whose rows sum to 1, 0 for padding."""
        scores = self.weigh(self.judge(features).tanh() * self.gate(features).sigmoid()).squeeze(2)
        return scores.masked_fill(padding_mask(lengths, features.shape[1]), -torch.inf).softmax(dim=1)
