"""Head on pooled features: linear, or with one hidden layer."""

from __future__ import annotations

from typing import Literal

from torch import nn

from ssl_toolkit.modules.mlp import mlp

HeadKind = Literal["linear", "mlp"]


def check_pooled_head(hidden: int, dropout: float) -> None:
    """Raises a ValueError for a head's arguments that are out of their range."""
    if hidden < 1:
        raise ValueError(f"hidden is {hidden}, expected a width of at least 1")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout is {dropout}, expected a probability of at least 0 and less than 1")


def pooled_head(kind: HeadKind, num_features: int, num_outputs: int, hidden: int, dropout: float) -> nn.Sequential:
    """The layers of a head.

    Args:
        kind: "linear", or "mlp": one hidden layer with BatchNorm and ReLU.
        num_features: Of the backbone.
        num_outputs: Scores, or numbers.
        hidden: Width of the hidden layer.
        dropout: Probability of dropping an input of the last layer.
    """
    if kind == "mlp":
        return mlp([num_features, hidden, num_outputs], dropout=dropout)
    return nn.Sequential(nn.Dropout(dropout), nn.Linear(num_features, num_outputs))
