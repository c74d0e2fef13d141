"""The head that sees one frame at a time: what a label of a frame is without its neighbours."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from downstream.base.sequence_heads.head import SequenceHead, padding_mask

if TYPE_CHECKING:
    from jaxtyping import Float, Int64


class FrameHead(SequenceHead):
    """Frame head: a classifier of each frame by itself; that of a sequence is the mean of their scores.

    It knows no other frame, so it says what these are worth for a label of each frame.

    Args:
        hidden: Width of a hidden layer with ReLU; 0 for a linear classifier.
        dropout: Probability in [0, 1) of dropping an input of the last layer.
    """

    blind_to_order = True
    labels_frames = True
    causal = True

    def __init__(self, hidden: int = 0, dropout: float = 0.0) -> None:
        super().__init__()
        if hidden < 0:
            raise ValueError(f"FrameHead: hidden is {hidden}, expected at least 0")
        self.hidden = hidden
        self.dropout = nn.Dropout(dropout)

    def build(self, num_features: int, num_classes: int) -> None:
        self.layers = nn.Sequential(nn.Linear(num_features, self.hidden), nn.ReLU()) if self.hidden else nn.Identity()
        self.classifier = nn.Linear(self.hidden or num_features, num_classes)

    def forward(
        self, features: Float[Tensor, "batch longest width"], lengths: Int64[Tensor, " batch"]
    ) -> Float[Tensor, "batch classes"]:
        padding = padding_mask(lengths, features.shape[1]).unsqueeze(2)
        return self._scores(features).masked_fill(padding, 0.0).sum(dim=1) / lengths.unsqueeze(1)

    def score_frames(
        self, features: Float[Tensor, "batch longest width"], lengths: Int64[Tensor, " batch"]
    ) -> list[Float[Tensor, "batch longest classes"]]:
        return [self._scores(features)]

    def _scores(self, features: Float[Tensor, "batch longest width"]) -> Float[Tensor, "batch longest classes"]:
        return self.classifier(self.dropout(self.layers(features)))
