"""Regression: one or several numbers of an image, such as an age or the parameters of a fit.

Regression(weights="runs/birds/backbone.safetensors", freeze_backbone=True, ...)   # data.targets: [wingspan, weight]
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.functional import mean_absolute_error, mean_squared_error, r2_score

from downstream.base import TargetTask
from ssl_toolkit.losses.full_precision import full_precision

RegressionLoss = Literal["mse", "huber", "l1"]


class Regression(TargetTask):
    """Regression of the targets by the pooled features of the backbone.

    The targets are standardized by mean and standard deviation of the training images, so that one learning rate fits
    any unit. It logs ``r2`` (the coefficient of determination, the mean over the targets; 0 is what always saying the
    mean reaches), for one target also ``mae`` and ``rmse`` in its unit; the test logs all three of each target, as
    ``test/mae_of/TARGET``.

    Args:
        loss_kind: "mse" (squared error), "huber" (squared up to one standard deviation, then absolute) or "l1"
            (absolute error); the latter two give less weight to outliers.
        **kwargs: Arguments of `TargetTask`.
    """

    target_mean: Tensor
    target_std: Tensor

    def __init__(self, *, loss_kind: RegressionLoss = "mse", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.loss_kind: RegressionLoss = loss_kind

    def build_head(self, num_features: int) -> None:
        """Makes the head, and takes mean and standard deviation of the training targets where there are such."""
        super().build_head(num_features)
        assert self.num_targets is not None
        mean, std = torch.zeros(self.num_targets), torch.ones(self.num_targets)
        if getattr(self.data, "target_names", ()):
            columns = [column[column.isfinite()].double() for column in self.data.targets("train").T]
            mean = torch.stack([column.mean() for column in columns]).float()
            std = torch.stack([column.std(correction=0) for column in columns]).float()
        self.register_buffer("target_mean", mean)
        self.register_buffer("target_std", std)

    def initial_loss(self, batch_size: int) -> float | None:
        """Always the mean: the variance of standardized targets, of those that are known."""
        if (
            self.loss_kind != "mse"
            or not getattr(self.data, "target_names", ())
            or getattr(self.data, "weighted", False)
        ):
            return None
        return float(self.data.targets("train").isfinite().float().mean())

    def target_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The error of standardized targets, averaged over all samples and targets; what is unknown adds nothing."""
        known = targets.isfinite()
        aim = ((targets - self.target_mean) / self.target_std).nan_to_num(0.0)
        function = {"mse": F.mse_loss, "huber": F.huber_loss, "l1": F.l1_loss}[self.loss_kind]
        return (function(full_precision(outputs), aim.to(full_precision(outputs)), reduction="none") * known).mean()

    def predictions(self, outputs: Tensor) -> Tensor:
        """The numbers in their own units."""
        return full_precision(outputs) * self.target_std + self.target_mean

    def figures(self, stage: str, predicted: Tensor, targets: Tensor) -> dict[str, float]:
        """Mean absolute error, root mean squared error and R2 of the known targets."""
        found: dict[str, float] = {}
        of_each: dict[str, dict[str, float]] = {}
        for number, name in enumerate(self.target_names):
            known = targets[:, number].isfinite()
            if int(known.sum()) < 2:
                continue
            # in standardized units, where large numbers that differ little keep their digits
            scale, shift = (float(each[number].double().cpu()) for each in (self.target_std, self.target_mean))
            guess, true = ((each[known, number].double() - shift) / scale for each in (predicted, targets))
            of_each[name] = {
                "mae": scale * float(mean_absolute_error(guess, true)),
                "rmse": scale * float(mean_squared_error(guess, true, squared=False)),
            }
            if bool((true != true[0]).any()):
                of_each[name]["r2"] = float(r2_score(guess, true))
        scores = [each["r2"] for each in of_each.values() if "r2" in each]
        if scores:
            found["r2"] = sum(scores) / len(scores)
        if len(self.target_names) == 1:
            found |= next(iter(of_each.values()), {})
        elif stage == "test":
            found |= {f"{kind}_of/{name}": value for name, each in of_each.items() for kind, value in each.items()}
        return found
