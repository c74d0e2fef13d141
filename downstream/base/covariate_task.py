"""Heads that read covariates beside the features of an image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from downstream.base.cached_features import CachingTask
from downstream.base.covariates import Covariates, CovariateUse, covariate_head
from downstream.base.pooled_head import HeadKind, pooled_head
from ssl_toolkit.distributed.ranks import is_rank_zero
from ssl_toolkit.step import StepContext, StepOutput


class CovariateTask(CachingTask):
    """Part of a `DownstreamTask` whose head may read the covariates of images (`Batch.covariates`).

    Args:
        covariates: How the head reads numbers that are given with an image (`data.covariates`), standardized:
            "concatenated" with the features; "multiplicative", where they choose the linear map that is applied to the
            features (`ssl_toolkit.modules.multiplicative.MultiplicativeInteraction`), for what neither tells alone; or
            "none". By default concatenated, as soon as the data have some.
        covariate_rank: Rank of the products of "multiplicative", at least 1: fewer weights; None for all products.
        **kwargs: Arguments of `CachingTask`.

    Attributes:
        covariates: The standardization of the covariates; None without any.
    """

    takes_covariates = True
    # why the head reads none, if it does not
    no_covariates: str | None = None

    def __init__(
        self, *, covariates: CovariateUse | None = None, covariate_rank: int | None = None, **kwargs: Any
    ) -> None:
        if covariate_rank is not None and covariate_rank < 1:
            raise ValueError(f"covariate_rank is {covariate_rank}, expected at least 1")
        if covariate_rank is not None and covariates != "multiplicative":
            raise ValueError(f"covariate_rank is of covariates multiplicative, not of {covariates}: leave it out")
        if covariates in ("concatenated", "multiplicative"):
            self._check_head()
        super().__init__(**kwargs)
        self.covariate_use: CovariateUse | None = covariates
        self.covariate_rank = covariate_rank
        self.covariates: Covariates | None = None
        # a checkpoint does not tell their names
        self._from_checkpoint = False

    def _check_head(self) -> None:
        if self.no_covariates is not None:
            raise ValueError(
                f"{self.no_covariates} reads no covariates: set model.covariates none, or model.head linear or mlp"
            )

    # ---- what the head is made for

    def use_covariates(self, names: Sequence[str], gaps: Sequence[int] = ()) -> None:
        """Has the head read covariates; to be called before there is one.

        Args:
            names: As for `Covariates`, whose mean and standard deviation are to be loaded.
            gaps: Likewise.
        """
        self._check_head()
        self.covariates = Covariates(names, gaps)

    def prepare_covariates(self, stage: str) -> None:
        """Asks the data for covariates, and says what is made of them.

        Args:
            stage: Of Lightning's ``setup``.

        Raises:
            ValueError: In one line: there are none, other ones than the head reads, or such as tell nothing.
        """
        if self.covariate_use == "none" or not self.takes_covariates:
            return
        data, precision = self.data, str(getattr(self._trainer, "precision", None))
        names: list[str] = list(getattr(data, "covariate_names", ()))
        if self.covariates is None and not names and self.covariate_use is not None:
            raise ValueError(
                f"model.covariates is {self.covariate_use}, but the data have none: name their columns in data.table "
                "with --data.covariates '[COLUMN, ...]'"
            )
        if self.covariates is None and names and self.is_complete():
            raise ValueError(
                f"the data have the covariates {', '.join(names)}, but the head was made without any: leave out "
                "data.covariates"
            )
        if names and precision.endswith("true") and precision[:2] not in ("32", "64"):
            raise ValueError(
                f"trainer.precision {precision} rounds covariates before they are standardized: use bf16-mixed or 32"
            )
        if self.covariates is None and names:
            training: Tensor = data.covariates("train")
            self._check_head()
            self.covariates = Covariates.of(names, training)
            if stage == "fit" and is_rank_zero():
                print(f"covariates, {self.covariate_use or 'concatenated'}: {self.covariates.words(training)}")
        elif self.covariates is not None and len(names) == len(self.covariates.names) and self._from_checkpoint:
            self.covariates.names = names
        elif self.covariates is not None and names and names != self.covariates.names:
            raise ValueError(
                f"the head reads the covariates {', '.join(self.covariates.names)}, but the data have "
                f"{', '.join(names)}: give the same as data.covariates"
            )

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes from the checkpoint which covariates there are, where it is not known."""
        super().on_load_checkpoint(checkpoint)
        has_gaps = checkpoint["state_dict"].get("covariates.has_gaps")
        if has_gaps is None or self.covariate_use == "none":
            return
        gaps = has_gaps.nonzero().flatten().tolist()
        if self.covariates is None:
            self.use_covariates([str(number) for number in range(len(has_gaps))], gaps)
            self._from_checkpoint = True
        elif (len(self.covariates.names), self.covariates.gaps) != (len(has_gaps), gaps):
            raise ValueError(
                "the checkpoint is of a head that reads other covariates, or of training images of which others are "
                "not known: give the data that the run began with"
            )

    def head_layers(
        self, kind: HeadKind, num_features: int, num_outputs: int, hidden: int, dropout: float
    ) -> nn.Sequential:
        """The layers of a head, which reads the covariates if there are some; the arguments are of `pooled_head`."""
        if self.covariates is None:
            return pooled_head(kind, num_features, num_outputs, hidden, dropout)
        num_inputs, use = self.covariates.num_inputs, self.covariate_use or "concatenated"
        return covariate_head(use, kind, num_features, num_inputs, num_outputs, hidden, dropout, self.covariate_rank)

    def covariates_header(self) -> dict[str, Any]:
        """What a model file tells of the covariates: plain data, empty without any."""
        if self.covariates is None:
            return {}
        return {"covariates": {"names": self.covariates.names, "gaps": self.covariates.gaps}}

    # ---- a step

    def with_covariates(self, features: Tensor, batch: Any) -> Tensor:
        """What the head gets: float tensor of shape ``[batch, num_features + inputs]``, or the features alone.

        Args:
            features: Float tensor of shape ``[batch, num_features]``.
            batch: What the loader has delivered.
        """
        given: Tensor | None = getattr(batch, "covariates", None)
        if self.covariates is None:
            if given is not None and self.covariate_use != "none":
                raise ValueError(
                    "the batch has covariates, but the data do not tell of them: a data module needs covariate_names "
                    "and covariates(split), as ssl_toolkit.data.ImageData has them; or set model.covariates none"
                )
            return features
        if given is None or given.shape[1] != len(self.covariates.names):
            raise ValueError(
                f"the head reads {len(self.covariates.names)} covariates of each image, but the batch has "
                f"{'none' if given is None else given.shape[1]}: use ssl_toolkit.data.ImageData with covariates"
            )
        return torch.cat([features, self.covariates(given)], dim=1)

    def mixed_covariates(self, encoded: Any, context: StepContext) -> Any:
        """What the head gets where images are mixed: their covariates are mixed as their targets are."""
        if self.covariates is None or context.mixing is None:
            return encoded
        features, given = encoded.tensor_split([self.backbone.num_features], dim=1)
        weights = context.mixing.weights.to(given).unsqueeze(1)
        return torch.cat([features, weights * given + (1 - weights) * given[context.mixing.partners]], dim=1)

    def without_covariates(self, output: StepOutput) -> StepOutput:
        """The output of a step, whose features are those of the backbone."""
        if self.covariates is None:
            return output
        return output._replace(features=output.features[:, : self.backbone.num_features])
