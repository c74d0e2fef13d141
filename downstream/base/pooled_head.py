"""Head on pooled features: linear, with one hidden layer, by cosine, or by the nearest mean of a class."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_toolkit.modules.mlp import mlp

# of any task; these begin with a linear layer
HeadKind = Literal["linear", "mlp"]
# of a classification
ClassHeadKind = Literal["linear", "mlp", "cosine", "nearest_mean"]


class CosineHead(nn.Module):
    """Scores of classes by the cosine between the features and a vector of each class, times a learned scale.

    Neither the length of the features nor that of a class's vector counts, of which frequent classes have the longer
    ones (Gidaris and Komodakis 2018, arXiv 1804.09367, section 3.1).

    Args:
        num_features: Of the backbone.
        num_classes: Scores.
        dropout: Probability of dropping a feature.
        scale: The first scale, above 0; 10 in the authors' code.
    """

    def __init__(self, num_features: int, num_classes: int, dropout: float = 0.0, scale: float = 10.0) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.classes = nn.Linear(num_features, num_classes, bias=False)
        # of one dimension, since FSDP cannot shard a scalar
        self.scale = nn.Parameter(torch.full((1,), scale))

    def forward(self, features: Tensor) -> Tensor:
        """Scores of shape ``[batch, num_classes]`` of features of shape ``[batch, num_features]``."""
        directions = F.normalize(self.dropout(features), dim=-1)
        return self.scale * F.linear(directions, F.normalize(self.classes.weight, dim=-1))


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
