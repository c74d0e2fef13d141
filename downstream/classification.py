"""Image classification: linear probe, probe with a hidden layer, or fine-tuning.

Classification(weights="runs/birds/backbone.safetensors", freeze_backbone=True, ...)       # linear probe
Classification(weights="runs/birds/backbone.safetensors", layer_decay=0.7, ...)            # fine-tuning
Classification(backbone=Backbone("resnet18"), ...)                                         # from random weights
"""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor, nn

from downstream.base import Classifier
from ssl_toolkit.modules.mlp import mlp


class Classification(Classifier):
    """Image classification by the pooled features of the backbone.

    Args:
        head: "linear", or "mlp": one hidden layer with BatchNorm and ReLU.
        hidden: Width of the hidden layer of an "mlp" head, at least 1.
        dropout: Probability in [0, 1) of dropping an input of the head's last layer.
        **kwargs: Arguments of `Classifier`.
    """

    def __init__(
        self, *, head: Literal["linear", "mlp"] = "linear", hidden: int = 512, dropout: float = 0.0, **kwargs: Any
    ) -> None:
        if hidden < 1:
            raise ValueError(f"hidden is {hidden}, expected a width of at least 1")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout is {dropout}, expected a probability of at least 0 and less than 1")
        super().__init__(**kwargs)
        self.head_kind = head
        self.hidden = hidden
        self.dropout = dropout

    def build_head(self, num_features: int) -> None:
        """Makes the head."""
        assert self.num_classes is not None
        if self.head_kind == "mlp":
            self.head = mlp([num_features, self.hidden, self.num_classes], dropout=self.dropout)
        else:
            self.head = nn.Sequential(nn.Dropout(self.dropout), nn.Linear(num_features, self.num_classes))

    def logits(self, features: Tensor) -> Tensor:
        """The head's scores."""
        return self.head(features)
