"""Ordinal classification: classes that have an order, such as grades or stages.

OrdinalClassification(weights="runs/eyes/backbone.safetensors", freeze_backbone=True, ...)   # classes 0, 1, 2, 3 and 4
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from downstream.base import Classifier, HeadKind, check_pooled_head
from downstream.base.classifier import accuracies
from ssl_toolkit.distributed.ranks import is_rank_zero, world_size
from ssl_toolkit.losses.coral import coral, coral_probabilities
from ssl_toolkit.step import StepContext, StepOutput


class CoralHead(nn.Module):
    """One score of an image, compared with a threshold between each two neighbouring classes.

    Args:
        score: The layers of the score: from ``[batch, num_features]`` to ``[batch, 1]``.
        num_classes: How many classes, at least 2.
    """

    def __init__(self, score: nn.Module, num_classes: int) -> None:
        super().__init__()
        self.score = score
        self.thresholds = nn.Parameter(torch.zeros(num_classes - 1))

    def forward(self, features: Tensor) -> Tensor:
        """Scores of "above class k": float tensor of shape ``[batch, num_classes - 1]``."""
        return self.score(features) - self.thresholds


class OrdinalClassification(Classifier):
    """CORAL: one score for each image, and a threshold between each two neighbouring classes.

    Cao, Mirjalili and Raschka 2020 (arXiv 1901.07884). The order of the classes is that of their numbers where their
    names are numbers, else that of the alphabet. Beside what `Classifier` logs it logs ``class_error``: how many
    classes the median of the probabilities is off, in the mean. The test also logs ``test/quadratic_kappa``: Cohen's
    kappa with quadratic weights, of the most probable classes; 0 is chance, 1 is perfect.

    Args:
        head: "linear", or "mlp": one hidden layer with BatchNorm and ReLU.
        hidden: Width of the hidden layer of an "mlp" head, at least 1.
        dropout: Probability in [0, 1) of dropping an input of the head's last layer.
        **kwargs: Arguments of `Classifier`.
    """

    takes_soft_targets = False
    head_begins_linear = True
    head_output_names = ("logits", "probabilities")

    def __init__(self, *, head: HeadKind = "linear", hidden: int = 512, dropout: float = 0.0, **kwargs: Any) -> None:
        check_pooled_head(hidden, dropout)
        for name in ("class_weights", "focal_gamma", "logit_adjustment"):
            if kwargs.get(name):
                raise ValueError(
                    f"{name} is {kwargs[name]}, but the loss of OrdinalClassification has none: leave it out"
                )
        self.head_begins_linear = kwargs.get("covariates") != "multiplicative"
        super().__init__(**kwargs)
        self.head_kind: HeadKind = head
        self.hidden = hidden
        self.dropout = dropout
        # [num_classes, num_classes]: test samples by their class and by the one that was predicted
        self._confusion = torch.zeros(0, 0, dtype=torch.int64)

    def setup(self, stage: str) -> None:
        """As in `Classifier`; says in which order the classes are."""
        super().setup(stage)
        if stage == "fit" and is_rank_zero():
            print(f"order of the classes: {' < '.join(self._class_names())}")

    def build_head(self, num_features: int) -> None:
        """Makes the head."""
        assert self.num_classes is not None
        score = self.head_layers(self.head_kind, num_features, 1, self.hidden, self.dropout)
        self.head = CoralHead(score, self.num_classes)

    def num_classes_of(self, head: dict[str, Tensor]) -> int:
        """One more than there are thresholds."""
        return len(head["head.thresholds"]) + 1

    def initial_loss(self, batch_size: int) -> float | None:
        """To be above a class is as likely as not."""
        return None if getattr(self.data, "weighted", False) else math.log(2)

    def logits(self, features: Tensor) -> Tensor:
        """The logarithms of the classes' probabilities."""
        return coral_probabilities(self.head(features)).clamp(min=1e-12).log()

    def loss(self, features: Any, targets: Tensor, context: StepContext) -> StepOutput:
        """Binary cross entropy of being above each class."""
        scores = self.head(features)
        with torch.no_grad():
            probabilities = coral_probabilities(scores)
            # most classes of an untrained head have the probability 0, so that which are among five is chance
            top1 = accuracies(probabilities, targets)["top1"]
            off = ((probabilities.cumsum(dim=1) < 0.5).sum(dim=1) - targets).abs().float().mean()
        return StepOutput(
            coral(scores, targets, context.sample_weights()),
            features,
            {"top1": top1, "class_error": off},
        )

    def on_test_epoch_start(self) -> None:
        """Starts to count."""
        super().on_test_epoch_start()
        assert self.num_classes is not None
        self._confusion = torch.zeros(self.num_classes, self.num_classes, dtype=torch.int64, device=self.device)

    def count_tested(self, predicted: Tensor, labels: Tensor) -> None:
        """Counts samples by their class and by the one that was predicted."""
        super().count_tested(predicted, labels)
        num = len(self._confusion)
        self._confusion += torch.bincount(labels * num + predicted, minlength=num * num).view(num, num)

    def on_test_epoch_end(self) -> None:
        """Logs what was measured."""
        super().on_test_epoch_end()
        confusion = self.trainer.strategy.reduce(self._confusion, reduce_op="sum")
        assert isinstance(confusion, Tensor)
        self.log("test/quadratic_kappa", quadratic_kappa(confusion), sync_dist=world_size() > 1)


def quadratic_kappa(confusion: Tensor) -> float:
    """Cohen's kappa with quadratic weights (Cohen 1968).

    Args:
        confusion: int64 tensor of shape ``[classes, classes]``: how many samples of each class (rows) were predicted
            as each (columns).

    Returns:
        At most 1; 0 for chance, and where all samples are of one class and predicted as it.
    """
    counts = confusion.double().cpu()
    places = torch.arange(len(counts), dtype=torch.float64)
    weights = (places[:, None] - places).square()
    expected = counts.sum(dim=1, keepdim=True) * counts.sum(dim=0, keepdim=True) / counts.sum()
    by_chance = float((weights * expected).sum())
    return 1 - float((weights * counts).sum()) / by_chance if by_chance else 0.0
