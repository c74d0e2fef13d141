"""Heads that convolve over time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from downstream.base.sequence_heads.head import SequenceHead, padding_mask

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int64


class TemporalConvHead(SequenceHead):
    """Temporal convolution head (TCN): residual blocks of two convolutions over time, each block dilated twice as much.

    Bai, Kolter and Koltun 2018, arXiv 1803.01271, section 3, without their weight normalisation. A frame is seen
    together with ``(kernel - 1) * (2 ** num_blocks - 1)`` frames before it, and as many after it unless the head is
    causal (twice as many before it then).

    Args:
        channels: Width of the blocks, at least 1.
        num_blocks: At least 1.
        kernel: Frames that a convolution sees, odd and at least 3.
        causal: Whether it sees no frame after the one that it computes.
        pooling: What goes to the linear classifier of a sequence: "mean" (of all frames) or "last" (the last frame).
        dropout: Probability in [0, 1) of dropping a channel of a frame after each convolution.
    """

    labels_frames = True

    def __init__(
        self,
        channels: int = 128,
        num_blocks: int = 3,
        kernel: int = 3,
        causal: bool = False,
        pooling: Literal["mean", "last"] = "mean",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if channels < 1 or num_blocks < 1:
            raise ValueError(
                f"TemporalConvHead needs channels and num_blocks of at least 1, got {channels} and {num_blocks}"
            )
        if kernel < 3 or kernel % 2 == 0:
            raise ValueError(f"TemporalConvHead: kernel is {kernel}, expected an odd number of at least 3")
        if pooling not in ("mean", "last"):
            raise ValueError(f"TemporalConvHead: pooling is {pooling!r}, expected mean or last")
        self.channels = channels
        self.num_blocks = num_blocks
        self.kernel = kernel
        self.causal = causal
        self.pooling = pooling
        self.dropout = dropout

    def build(self, num_features: int, num_classes: int) -> None:
        self.blocks = nn.ModuleList(
            _Block(self.channels if number else num_features, self.channels, self.kernel, 2**number, self.causal,
                   self.dropout)
            for number in range(self.num_blocks)
        )  # fmt: skip
        self.classifier = nn.Linear(self.channels, num_classes)

    def forward(
        self, features: Float[Tensor, "batch longest width"], lengths: Int64[Tensor, " batch"]
    ) -> Float[Tensor, "batch classes"]:
        states = self._states(features, lengths)
        if self.pooling == "mean":
            pooled = states.sum(dim=2) / lengths.unsqueeze(1)
        else:
            last = (lengths - 1)[:, None, None].expand(-1, states.shape[1], 1)
            pooled = states.gather(2, last).squeeze(2)
        return self.classifier(pooled)

    def score_frames(
        self, features: Float[Tensor, "batch longest width"], lengths: Int64[Tensor, " batch"]
    ) -> list[Float[Tensor, "batch longest classes"]]:
        return [self.classifier(self._states(features, lengths).transpose(1, 2))]

    def _states(
        self, features: Float[Tensor, "batch longest width"], lengths: Int64[Tensor, " batch"]
    ) -> Float[Tensor, "batch channels longest"]:
        padding = padding_mask(lengths, features.shape[1]).unsqueeze(1)
        states = features.transpose(1, 2).masked_fill(padding, 0.0)
        for block in self.blocks:
            states = block(states, padding)
        return states


class _Block(nn.Module):
    """Two dilated convolutions over time beside a shortcut; what lies beyond the end of a sequence stays 0."""

    def __init__(self, width: int, channels: int, kernel: int, dilation: int, causal: bool, dropout: float) -> None:
        super().__init__()
        reach = (kernel - 1) * dilation
        self.around = (reach, 0) if causal else (reach // 2, reach // 2)
        self.first = nn.Conv1d(width, channels, kernel, dilation=dilation)
        self.second = nn.Conv1d(channels, channels, kernel, dilation=dilation)
        self.shortcut = nn.Conv1d(width, channels, 1) if width != channels else nn.Identity()
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, states: Float[Tensor, "batch width longest"], padding: Bool[Tensor, "batch 1 longest"]
    ) -> Float[Tensor, "batch channels longest"]:
        found = self.dropout(self.first(F.pad(states, self.around)).relu()).masked_fill(padding, 0.0)
        found = self.dropout(self.second(F.pad(found, self.around)).relu())
        return (self.shortcut(states) + found).relu().masked_fill(padding, 0.0)
