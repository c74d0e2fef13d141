"""Transformer heads."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from downstream.base.sequence_heads.head import SequenceHead, padding_mask

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int64


class TransformerHead(SequenceHead):
    """Transformer head: a pre-norm encoder over the frames (Vaswani et al. 2017, arXiv 1706.03762).

    Args:
        dim: Width of the tokens; a multiple of ``num_heads``, and even.
        num_layers: Encoder layers, at least 1.
        num_heads: Attention heads.
        positions: "sinusoidal" (Vaswani et al. 2017, section 3.5; any length) or "learned" (up to ``max_frames``).
        pooling: "cls" (a learned token that joins each sequence), "mean" (of the tokens of the frames) or "last" (the
            token of the last frame).
        max_frames: The longest sequence that learned positions can take; sinusoidal positions do not use it.
        dropout: Probability in [0, 1) of dropping a unit in the encoder and before the classifier.
        causal: Whether each frame attends to itself and to those before it only; with the pooling "mean" or "last".
    """

    labels_frames = True

    def __init__(
        self,
        dim: int = 256,
        num_layers: int = 2,
        num_heads: int = 4,
        positions: Literal["sinusoidal", "learned"] = "sinusoidal",
        pooling: Literal["cls", "mean", "last"] = "cls",
        max_frames: int = 512,
        dropout: float = 0.1,
        causal: bool = False,
    ) -> None:
        super().__init__()
        if dim % 2 or dim % num_heads:
            raise ValueError(
                f"TransformerHead needs an even dim that num_heads divides, got dim={dim} and num_heads={num_heads}"
            )
        if pooling not in ("cls", "mean", "last"):
            raise ValueError(f"TransformerHead: pooling is {pooling!r}, expected cls, mean or last")
        if causal and pooling == "cls":
            raise ValueError(
                "TransformerHead: pooling is cls, whose token sees all frames, but causal is set: use mean or last"
            )
        self.dim = dim
        self.num_layers = num_layers
        self.num_heads = num_heads
        self.positions = positions
        self.pooling = pooling
        self.max_frames = max_frames
        self.causal = causal
        self.dropout = nn.Dropout(dropout)

    def build(self, num_features: int, num_classes: int) -> None:
        self.project = nn.Linear(num_features, self.dim)
        layer = nn.TransformerEncoderLayer(
            self.dim, self.num_heads, 4 * self.dim, self.dropout.p, "gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(
            layer, self.num_layers, norm=nn.LayerNorm(self.dim), enable_nested_tensor=False
        )
        if self.pooling == "cls":
            self.cls_token = nn.Parameter(0.02 * torch.randn(1, 1, self.dim))
        if self.positions == "learned":
            self.position_table = nn.Parameter(0.02 * torch.randn(1, self.max_frames, self.dim))
        self.classifier = nn.Linear(self.dim, num_classes)

    def forward(
        self, features: Float[Tensor, "batch longest width"], lengths: Int64[Tensor, " batch"]
    ) -> Float[Tensor, "batch classes"]:
        padding = padding_mask(lengths, features.shape[1])
        tokens = self._tokens(features, padding)
        if self.pooling == "cls":
            pooled = tokens[:, 0]
        elif self.pooling == "last":
            pooled = tokens[torch.arange(len(tokens), device=tokens.device), lengths - 1]
        else:
            pooled = tokens.masked_fill(padding.unsqueeze(2), 0.0).sum(dim=1) / lengths.unsqueeze(1)
        return self.classifier(self.dropout(pooled))

    def score_frames(
        self, features: Float[Tensor, "batch longest width"], lengths: Int64[Tensor, " batch"]
    ) -> list[Float[Tensor, "batch longest classes"]]:
        tokens = self._tokens(features, padding_mask(lengths, features.shape[1]))
        return [self.classifier(self.dropout(tokens[:, 1:] if self.pooling == "cls" else tokens))]

    def _tokens(
        self, features: Float[Tensor, "batch longest width"], padding: Bool[Tensor, "batch longest"]
    ) -> Float[Tensor, "batch tokens dim"]:
        """The encoded frames, after the token "cls" where there is one."""
        # attention gives padding the weight 0, and 0 times infinity would still be NaN
        tokens = self.project(features.masked_fill(padding.unsqueeze(2), 0.0))
        tokens = tokens + self._positions(features.shape[1], tokens)
        if self.pooling == "cls":
            tokens = torch.cat([self.cls_token.expand(len(tokens), 1, self.dim), tokens], dim=1)
            padding = torch.cat([padding.new_zeros(len(padding), 1), padding], dim=1)
        hidden = None
        if self.causal:
            hidden = torch.ones(tokens.shape[1], tokens.shape[1], dtype=torch.bool, device=tokens.device).triu(1)
        return self.encoder(self.dropout(tokens), mask=hidden, src_key_padding_mask=padding, is_causal=self.causal)

    def _positions(self, num: int, like: Tensor) -> Tensor:
        """The codes of the first ``num`` places: float tensor of shape ``[1, num, dim]``."""
        if self.positions == "sinusoidal":
            return sinusoidal_positions(num, self.dim).to(like).unsqueeze(0)
        if num > self.max_frames:
            raise ValueError(
                f"a sequence has {num} frames, but the learned positions end at max_frames={self.max_frames}: "
                "raise the head's max_frames, lower the data's max_frames, or use positions: sinusoidal"
            )
        return self.position_table[:, :num]


def sinusoidal_positions(num: int, dim: int) -> Float[Tensor, "num dim"]:
    """Sinusoidal position encodings: sines and cosines of geometric wavelengths (Vaswani et al. 2017, section 3.5).

    Args:
        num: Places, counted from 0.
        dim: Width of a code, even.

    Returns:
        float32 tensor of shape ``[num, dim]``: ``sin(p / 10000^(2i / dim))`` in the even columns 2i, the cosine of the
        same angle in the odd columns 2i + 1.
    """
    rates = torch.exp(-math.log(10000.0) * torch.arange(0, dim, 2) / dim)
    angles = torch.arange(num).unsqueeze(1) * rates
    return torch.stack([angles.sin(), angles.cos()], dim=2).reshape(num, dim)
