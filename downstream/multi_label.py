"""Multi-label classification: several yes-or-no questions about an image.

MultiLabel(weights="runs/birds/backbone.safetensors", freeze_backbone=True, ...)   # data.targets: [male, adult]
"""

from __future__ import annotations

import math
from typing import Any, Literal

from torch import Tensor
from torchmetrics.functional.classification import (
    binary_average_precision,
    binary_f1_score,
    binary_precision_recall_curve,
)

from downstream.base import TargetTask
from ssl_toolkit.losses.multi_label import asymmetric_loss, binary_cross_entropy

MultiLabelLoss = Literal["bce", "asymmetric"]


class MultiLabel(TargetTask):
    """Multi-label classification by the pooled features of the backbone.

    Each target is a label that an image has (1) or not (0). It logs ``map`` (mean average precision over the labels)
    and ``f1`` (mean F1 score), each label's at the threshold that was best on the validation images (0.5 without any);
    the test also logs them of each label, as ``test/ap_of/LABEL``, and ``test/prevalence``: the mean average precision
    of guessing. A label that all images have, or none, counts in neither.

    Args:
        loss_kind: "bce" (binary cross entropy) or "asymmetric" (Ridnik et al. 2021, arXiv 2009.14119), for many labels
            that most images do not have.
        **kwargs: Arguments of `TargetTask`.
    """

    def __init__(self, *, loss_kind: MultiLabelLoss = "bce", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.loss_kind: MultiLabelLoss = loss_kind
        self.thresholds: dict[int, float] = {}

    def check_targets(self, names: list[str], targets: Tensor) -> None:
        """As in `TargetTask`; and they are 0 or 1."""
        super().check_targets(names, targets)
        for name, column in zip(names, targets.T, strict=True):
            others = column[column.isfinite() & (column != 0) & (column != 1)]
            if len(others):
                raise ValueError(
                    f"{name!r} of data.targets is {float(others[0]):g} for a training image; a label is 1 (yes) or 0 "
                    "(no), and downstream.regression.Regression predicts other numbers"
                )

    def initial_loss(self, batch_size: int) -> float | None:
        """Each label is as likely as not, of those that are known."""
        if (
            self.loss_kind != "bce"
            or not getattr(self.data, "target_names", ())
            or getattr(self.data, "weighted", False)
        ):
            return None
        return math.log(2) * float(self.data.targets("train").isfinite().float().mean())

    def target_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Binary cross entropy, or the asymmetric loss; what is unknown adds nothing."""
        return (binary_cross_entropy if self.loss_kind == "bce" else asymmetric_loss)(outputs, targets)

    def predictions(self, outputs: Tensor) -> Tensor:
        """The probability of each label."""
        return outputs.sigmoid()

    def on_test_epoch_start(self) -> None:
        """Finds each label's threshold, on the validation images and with the weights that are tested."""
        super().on_test_epoch_start()
        self.thresholds = {}
        if self.data is None or not self.data.num_images("val"):
            return
        strategy: Any = self.trainer.strategy
        for batch in self.data.val_dataloader():
            with strategy.precision_plugin.test_step_context():
                self.test_step(strategy.batch_to_device(batch), 0)
        self.find_thresholds(*self.collected())
        super().on_test_epoch_start()  # nothing measured yet

    def find_thresholds(self, predicted: Tensor, targets: Tensor) -> None:
        """Sets each label's threshold to the best one of some samples.

        Args:
            predicted: Float tensor of shape ``[samples, num_targets]``: probabilities.
            targets: Likewise: 1 or 0, NaN where it is not known.
        """
        for number in range(targets.shape[1]):
            known = targets[:, number].isfinite()
            present = targets[known, number].long()
            if 0 < int(present.sum()) < len(present):
                self.thresholds[number] = best_threshold(predicted[known, number], present)

    def figures(self, stage: str, predicted: Tensor, targets: Tensor) -> dict[str, float]:
        """Average precision and F1 score of the labels; on validation images at the thresholds that are best there."""
        if stage == "val":
            self.find_thresholds(predicted, targets)
        precisions, scores, prevalences = {}, {}, {}
        for number, name in enumerate(self.target_names):
            known = targets[:, number].isfinite()
            probabilities, present = predicted[known, number], targets[known, number].long()
            if not 0 < int(present.sum()) < len(present):
                continue
            threshold = self.thresholds.get(number, 0.5)
            precisions[name] = float(binary_average_precision(probabilities, present))
            scores[name] = float(binary_f1_score((probabilities >= threshold).long(), present))
            prevalences[name] = float(present.double().mean())
        if not precisions:
            return {}
        found = {"map": _mean(precisions), "f1": _mean(scores)}
        if stage == "test":
            found["prevalence"] = _mean(prevalences)
            found |= {f"ap_of/{name}": value for name, value in precisions.items()}
            found |= {f"f1_of/{name}": value for name, value in scores.items()}
        return found


def best_threshold(probabilities: Tensor, present: Tensor) -> float:
    """The probability from which on a label is to be said, for the highest F1 score on these samples.

    It is half-way between two of their probabilities, so that rounding plays no role.

    Args:
        probabilities: Float tensor of shape ``[samples]``.
        present: int64 tensor of the same shape: 1 or 0.
    """
    precision, recall, thresholds = binary_precision_recall_curve(probabilities, present)
    scores = 2 * precision * recall / (precision + recall).clamp(min=1e-12)
    best = int(scores[:-1].argmax())
    return float(thresholds[max(0, best - 1) : best + 1].mean()) if best else 0.0


def _mean(values: dict[str, float]) -> float:
    return sum(values.values()) / len(values)
