"""Heads that refine the labels of frames in stages."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor, nn

from downstream.base.sequence_heads.head import SequenceHead, padding_mask

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int64


class MultiStageTCNHead(SequenceHead):
    """Multi-stage temporal convolution head (MS-TCN): each stage refines the probabilities of the one before.

    Farha and Gall 2019, arXiv 1903.01945, section 3: a stage is a convolution over single frames, residual layers of
    dilated convolutions over three frames, each dilated twice as much, and a classifier of each frame. All stages are
    trained. The scores of a sequence are the mean of those of its frames. A stage sees ``2 ** num_layers - 1`` frames
    to each side of a frame, or twice as many before it and none after it where it is causal.

    Args:
        channels: Width of the layers, at least 1.
        num_layers: Of each stage, at least 1.
        num_stages: At least 1.
        causal: Whether it sees no frame after the one that it labels.
        dropout: Probability in [0, 1) of dropping a unit of a layer.
    """

    labels_frames = True

    def __init__(
        self,
        channels: int = 64,
        num_layers: int = 10,
        num_stages: int = 4,
        causal: bool = False,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        for name, value in (("channels", channels), ("num_layers", num_layers), ("num_stages", num_stages)):
            if value < 1:
                raise ValueError(f"MultiStageTCNHead: {name} is {value}, expected at least 1")
        self.channels = channels
        self.num_layers = num_layers
        self.num_stages = num_stages
        self.causal = causal
        self.dropout = dropout

    def build(self, num_features: int, num_classes: int) -> None:
        self.stages = nn.ModuleList(
            _Stage(num_classes if number else num_features, self.channels, num_classes, self.num_layers, self.causal,
                   self.dropout)
            for number in range(self.num_stages)
        )  # fmt: skip

    def forward(
        self, features: Float[Tensor, "batch longest width"], lengths: Int64[Tensor, " batch"]
    ) -> Float[Tensor, "batch classes"]:
        padding = padding_mask(lengths, features.shape[1]).unsqueeze(2)
        scores = self.score_frames(features, lengths)[-1]
        return scores.masked_fill(padding, 0.0).sum(dim=1) / lengths.unsqueeze(1)

    def score_frames(
        self, features: Float[Tensor, "batch longest width"], lengths: Int64[Tensor, " batch"]
    ) -> list[Float[Tensor, "batch longest classes"]]:
        padding = padding_mask(lengths, features.shape[1]).unsqueeze(1)
        states, found = features.transpose(1, 2), []
        for stage in self.stages:
            scores = stage(states.masked_fill(padding, 0.0), padding)
            found.append(scores.transpose(1, 2))
            states = scores.softmax(dim=1)
        return found


class _Stage(nn.Module):
    """Dilated residual layers between two convolutions over single frames."""

    def __init__(self, width: int, channels: int, num_classes: int, num: int, causal: bool, dropout: float) -> None:
        super().__init__()
        self.first = nn.Conv1d(width, channels, 1)
        self.layers = nn.ModuleList(_Layer(channels, 2**number, causal, dropout) for number in range(num))
        self.classifier = nn.Conv1d(channels, num_classes, 1)

    def forward(
        self, states: Float[Tensor, "batch width longest"], padding: Bool[Tensor, "batch 1 longest"]
    ) -> Float[Tensor, "batch classes longest"]:
        states = self.first(states).masked_fill(padding, 0.0)
        for layer in self.layers:
            states = layer(states).masked_fill(padding, 0.0)
        return self.classifier(states)


class _Layer(nn.Module):
    """A dilated convolution over three frames and one over single frames, beside a shortcut."""

    def __init__(self, channels: int, dilation: int, causal: bool, dropout: float) -> None:
        super().__init__()
        self.around = (2 * dilation, 0) if causal else (dilation, dilation)
        self.dilated = nn.Conv1d(channels, channels, 3, dilation=dilation)
        self.mix = nn.Conv1d(channels, channels, 1)
        self.dropout = nn.Dropout(dropout)

    def forward(self, states: Float[Tensor, "batch channels longest"]) -> Float[Tensor, "batch channels longest"]:
        return states + self.dropout(self.mix(self.dilated(F.pad(states, self.around)).relu()))
