"""Recurrent heads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from downstream.base.sequence_heads.head import SequenceHead
from ssl_toolkit.errors import nearest

if TYPE_CHECKING:
    from jaxtyping import Float, Int64
    from torch import Tensor
    from torch.nn.utils.rnn import PackedSequence

RECURRENT = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}


class RecurrentHead(SequenceHead):
    """Recurrent head: reads the frames one by one; the final state of the last layer gives the class.

    LSTM: Hochreiter and Schmidhuber, "Long short-term memory", 1997. GRU: Cho et al. 2014, arXiv 1406.1078.

    Args:
        kind: "rnn" (tanh units), "lstm" or "gru".
        hidden: Width of the state, at least 1.
        num_layers: Layers on top of each other, at least 1.
        bidirectional: Whether a second network reads each sequence from its end; the two states are concatenated.
        dropout: Probability in [0, 1) of dropping an input of a layer after the first, or of the classifier.
    """

    labels_frames = True

    def __init__(
        self,
        kind: Literal["rnn", "lstm", "gru"] = "lstm",
        hidden: int = 256,
        num_layers: int = 1,
        bidirectional: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if kind not in RECURRENT:
            raise ValueError(f"RecurrentHead: kind is {kind!r}, expected rnn, lstm or gru{nearest(kind, RECURRENT)}")
        if hidden < 1 or num_layers < 1:
            raise ValueError(f"RecurrentHead needs hidden and num_layers of at least 1, got {hidden} and {num_layers}")
        self.kind = kind
        self.hidden = hidden
        self.num_layers = num_layers
        self.num_directions = 2 if bidirectional else 1
        self.causal = not bidirectional
        self.dropout = nn.Dropout(dropout)

    def build(self, num_features: int, num_classes: int) -> None:
        self.recurrent = RECURRENT[self.kind](
            num_features,
            self.hidden,
            num_layers=self.num_layers,
            batch_first=True,
            bidirectional=self.num_directions == 2,
            # torch drops between layers only and warns where there is nothing between
            dropout=self.dropout.p if self.num_layers > 1 else 0.0,
        )
        self.classifier = nn.Linear(self.num_directions * self.hidden, num_classes)

    def forward(
        self, features: Float[Tensor, "batch longest width"], lengths: Int64[Tensor, " batch"]
    ) -> Float[Tensor, "batch classes"]:
        _, state = self.recurrent(_packed(features, lengths))
        if self.kind == "lstm":
            state, _ = state
        # [num_layers * num_directions, batch, hidden]: the last entries are the directions of the last layer
        final = torch.cat(list(state[-self.num_directions :]), dim=1)
        return self.classifier(self.dropout(final))

    def score_frames(
        self, features: Float[Tensor, "batch longest width"], lengths: Int64[Tensor, " batch"]
    ) -> list[Float[Tensor, "batch longest classes"]]:
        states, _ = self.recurrent(_packed(features, lengths))
        padded, _ = pad_packed_sequence(states, batch_first=True, total_length=features.shape[1])
        return [self.classifier(self.dropout(padded))]


def _packed(features: Tensor, lengths: Tensor) -> PackedSequence:
    return pack_padded_sequence(features, lengths.cpu(), batch_first=True, enforce_sorted=False)
