"""Image classification: linear probe, probe with a hidden layer, or fine-tuning.

Classification(weights="runs/birds/backbone.safetensors", freeze_backbone=True, ...)       # linear probe
Classification(weights="runs/birds/backbone.safetensors", layer_decay=0.7, ...)            # fine-tuning
Classification(backbone=Backbone("resnet18"), ...)                                         # from random weights
"""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor

from downstream.base import Classifier, CosineHead, check_pooled_head, pooled_head


class Classification(Classifier):
    """Image classification by the pooled features of the backbone.

    Args:
        head: "linear"; "mlp", with one hidden layer, BatchNorm and ReLU; or "cosine" (`CosineHead`).
        hidden: Width of the hidden layer of an "mlp" head, at least 1.
        dropout: Probability in [0, 1) of dropping an input of the head's last layer.
        **kwargs: Arguments of `Classifier`.
    """

    head_begins_linear = True
    head_output_names = ("logits", "probabilities")

    def __init__(
        self,
        *,
        head: Literal["linear", "mlp", "cosine"] = "linear",
        hidden: int = 512,
        dropout: float = 0.0,
        **kwargs: Any,
    ) -> None:
        check_pooled_head(hidden, dropout)
        if head == "cosine" and kwargs.get("head_weights") is not None:
            raise ValueError("head_weights is not for a cosine head: standardization cannot be folded into it")
        super().__init__(**kwargs)
        self.head_kind: Literal["linear", "mlp", "cosine"] = head
        self.hidden = hidden
        self.dropout = dropout

    def build_head(self, num_features: int) -> None:
        """Makes the head."""
        assert self.num_classes is not None
        if self.head_kind == "cosine":
            self.head = CosineHead(num_features, self.num_classes, self.dropout)
        else:
            self.head = pooled_head(self.head_kind, num_features, self.num_classes, self.hidden, self.dropout)

    def logits(self, features: Tensor) -> Tensor:
        """The head's scores."""
        return self.head(features)
