"""Image classification: linear probe, probe with a hidden layer, nearest class mean, or fine-tuning.

Classification(weights="runs/birds/backbone.safetensors", freeze_backbone=True, ...)       # linear probe
Classification(weights="runs/birds/backbone.safetensors", layer_decay=0.7, ...)            # fine-tuning
Classification(backbone=Backbone("resnet18"), ...)                                         # from random weights
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from downstream.base import (
    ClassHeadKind,
    Classifier,
    CosineHead,
    NearestMeanHead,
    check_pooled_head,
    check_views,
    compute_features,
)


class Classification(Classifier):
    """Image classification by the pooled features of the backbone.

    Args:
        head: "linear"; "mlp", with one hidden layer, BatchNorm and ReLU; "cosine" (`CosineHead`); or, with
            `freeze_backbone`, "nearest_mean" (`NearestMeanHead`): nothing is trained, the class means of the features
            are computed once, and tested.
        hidden: Width of the hidden layer of an "mlp" head, at least 1.
        dropout: Probability in [0, 1) of dropping an input of the head's last layer.
        **kwargs: Arguments of `Classifier`.
    """

    head_output_names = ("logits", "probabilities")

    def __init__(
        self,
        *,
        head: ClassHeadKind = "linear",
        hidden: int = 512,
        dropout: float = 0.0,
        **kwargs: Any,
    ) -> None:
        check_pooled_head(hidden, dropout)
        if head == "nearest_mean":
            _check_nearest_mean(dropout, kwargs)
        self.head_begins_linear = head in ("linear", "mlp") and kwargs.get("covariates") != "multiplicative"
        self.no_covariates = None if head in ("linear", "mlp") else f"head {head}"
        super().__init__(**kwargs)
        self.head_kind: ClassHeadKind = head
        self.trains_nothing = head == "nearest_mean"
        self.takes_weights = not self.trains_nothing
        self.hidden = hidden
        self.dropout = dropout

    def build_head(self, num_features: int) -> None:
        """Makes the head."""
        assert self.num_classes is not None
        if self.head_kind == "cosine":
            self.head = CosineHead(num_features, self.num_classes, self.dropout)
        elif self.head_kind == "nearest_mean":
            self.head = NearestMeanHead(num_features, self.num_classes)
        else:
            self.head = self.head_layers(self.head_kind, num_features, self.num_classes, self.hidden, self.dropout)

    def logits(self, features: Tensor) -> Tensor:
        """The head's scores."""
        return self.head(features)

    # ---- nearest_mean

    def check_data(self, data: Any) -> None:
        """As in `DownstreamTask`; refuses what would change a training."""
        super().check_data(data)
        if self.trains_nothing and getattr(data, "class_balance", 0):
            raise ValueError("head nearest_mean has no training that data.class_balance would change: leave it out")

    def on_fit_start(self) -> None:
        """Computes what a head has that is not trained."""
        super().on_fit_start()
        if isinstance(self.head, NearestMeanHead):
            found = compute_features(self, "train", "head nearest_mean")
            places = torch.from_numpy(self.data.indices("train")).to(found.indices.device)
            labels = self.data.labels("train").to(places.device)[torch.searchsorted(places, found.indices)]
            standardize: Any = self.standardize
            self.head.fit(standardize, found.features, labels, self._class_names())

    def configure_optimizers(self) -> Any:
        """No optimizer for a head with nothing to train."""
        return None if self.trains_nothing else super().configure_optimizers()

    def on_train_start(self) -> None:
        """Refuses to train a head with nothing to train."""
        if self.trains_nothing:
            raise ValueError("head nearest_mean has nothing to train: set trainer.max_epochs to 0, and test")
        super().on_train_start()


def _check_nearest_mean(dropout: float, given: dict[str, Any]) -> None:
    """Refuses settings of a training."""
    if not given.get("freeze_backbone"):
        raise ValueError("head nearest_mean trains nothing, so that it needs a frozen backbone: set freeze_backbone")
    check_views(given.get("augmentation"), "head nearest_mean")
    settings = {"dropout": dropout, **given}
    for name in ("dropout", "class_weights", "focal_gamma", "logit_adjustment", "regularizers", "cache_features"):
        if settings.get(name):
            raise ValueError(f"head nearest_mean has no training that {name} would change: leave it out")
