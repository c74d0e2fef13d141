"""`TargetTask`: the base class of tasks that predict numbers of each image."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from downstream.base.pooled_head import HeadKind, check_pooled_head
from downstream.base.task import DownstreamTask
from ssl_toolkit.distributed.collectives import gather_uneven
from ssl_toolkit.distributed.ranks import world_size
from ssl_toolkit.random import sample_keys
from ssl_toolkit.step import StepContext, StepOutput


class TargetTask(DownstreamTask):
    """Base class of tasks that predict the targets of an image (`Batch.targets`), of which some may be unknown.

    A new one defines `target_loss`, `predictions` and `figures`.

    Args:
        num_targets: How many targets; by default as many as the data have.
        head: "linear", or "mlp": one hidden layer with BatchNorm and ReLU.
        hidden: Width of the hidden layer of an "mlp" head, at least 1.
        dropout: Probability in [0, 1) of dropping an input of the head's last layer.
        **kwargs: Arguments of `DownstreamTask`.
    """

    predicts = True
    takes_weights = True
    head_begins_linear = True
    head_output_names = ("outputs", "predictions")

    def __init__(
        self,
        *,
        num_targets: int | None = None,
        head: HeadKind = "linear",
        hidden: int = 512,
        dropout: float = 0.0,
        **kwargs: Any,
    ) -> None:
        if num_targets is not None and num_targets < 1:
            raise ValueError(f"num_targets is {num_targets}, expected at least 1")
        check_pooled_head(hidden, dropout)
        self.head_begins_linear = kwargs.get("covariates") != "multiplicative"
        super().__init__(**kwargs)
        self.num_targets = num_targets
        self.head_kind: HeadKind = head
        self.hidden = hidden
        self.dropout = dropout
        self._seen: list[tuple[Tensor, Tensor]] = []

    @property
    def is_supervised(self) -> bool:
        """It learns from targets."""
        return True

    # ---- what a task defines

    @abstractmethod
    def target_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss, a scalar: a mean over the samples, so that it does not depend on what they are batched with.

        Args:
            outputs: Of the head: float tensor of shape ``[batch, num_targets]``.
            targets: float32 tensor of the same shape, NaN where one is not known.
        """

    @abstractmethod
    def predictions(self, outputs: Tensor) -> Tensor:
        """What the outputs of the head predict: float tensor of the same shape."""

    @abstractmethod
    def figures(self, stage: str, predicted: Tensor, targets: Tensor) -> dict[str, float]:
        """The figures of all samples of a validation or a test, by name.

        Args:
            stage: ``val`` or ``test``.
            predicted: Float tensor of shape ``[samples, num_targets]``: those of all processes.
            targets: Likewise; NaN where one is not known.
        """

    # ---- the data

    def setup(self, stage: str) -> None:
        """Asks the data for the targets; images whose targets are to be predicted need not have any."""
        data: Any = self.data
        names: list[str] = list(getattr(data, "target_names", ()))
        if not names and data is not None and stage != "predict":
            raise ValueError(
                f"{type(self).__name__} predicts numbers, but the data have none: name their columns in "
                "data.table with --data.targets '[COLUMN, ...]'"
            )
        if names and self.num_targets not in (None, len(names)):
            raise ValueError(f"num_targets is {self.num_targets}, but the data have {len(names)}: {', '.join(names)}")
        if self.num_targets is None:
            if not names:
                raise ValueError("num_targets is not known: give it to the task, or use a data module that has targets")
            self.num_targets = len(names)
        if names and data is not None and stage == "fit":
            self.check_targets(names, data.targets("train"))
        super().setup(stage)

    def check_targets(self, names: list[str], targets: Tensor) -> None:
        """Raises a ValueError for training targets from which nothing can be learned.

        Args:
            names: Of the targets.
            targets: Float tensor of shape ``[images, num_targets]``, NaN where one is not known.
        """
        for name, column in zip(names, targets.T, strict=True):
            known = column[column.isfinite()]
            if not len(known):
                raise ValueError(f"no training image has a number for {name!r}; leave it out of data.targets")
            if bool((known == known[0]).all()):
                raise ValueError(
                    f"all training images have {float(known[0]):g} for {name!r}, so that there is nothing to learn; "
                    "leave it out of data.targets"
                )

    @property
    def target_names(self) -> list[str]:
        """A name for each target; its number where the data have none."""
        names: list[str] = list(getattr(self.data, "target_names", ()))
        return names or [str(number) for number in range(self.num_targets or 0)]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes the number of targets from the last tensor of the head, where it is not known."""
        head = [each for name, each in checkpoint["state_dict"].items() if name.startswith("head.") and each.ndim]
        if self.num_targets is None and head:
            self.num_targets = len(head[-1])
        super().on_load_checkpoint(checkpoint)

    # ---- a step

    def build_head(self, num_features: int) -> None:
        """Makes the head."""
        assert self.num_targets is not None
        self.head = self.head_layers(self.head_kind, num_features, self.num_targets, self.hidden, self.dropout)

    def step(self, batch: Any, keys: Tensor, context: StepContext) -> StepOutput:
        """Features, then loss."""
        if batch.targets is None:
            raise ValueError(f"{type(self).__name__} needs targets: give (images, targets), floats of [batch, targets]")
        return self.without_covariates(self.loss(self.encode(batch, keys), batch.targets, context))

    def loss(self, features: Any, targets: Tensor, context: StepContext) -> StepOutput:
        """The loss of the head's outputs."""
        outputs, counts = self.head(features), context.sample_weights()
        if counts is None:
            return StepOutput(self.target_loss(outputs, targets), features, {})
        # a mean over samples is, of one sample, its own loss
        losses = torch.vmap(lambda one, aim: self.target_loss(one[None], aim[None]))(outputs, targets)
        return StepOutput((losses * counts.to(losses)).mean(), features, {})

    def head_outputs(self, features: Any) -> tuple[Tensor, Tensor]:
        """The outputs of the head and what they predict: float tensors of shape ``[batch, num_targets]``."""
        outputs = self.head(features)
        return outputs, self.predictions(outputs).float()

    @torch.no_grad()
    def predict(self, batch: Any) -> Tensor:
        """The predictions for a batch, computed in evaluation mode: float32 tensor ``[batch, num_targets]``."""
        was_training = self.training
        self.eval()
        _, predicted = self.head_outputs(self.encode(batch, sample_keys(self.seed, 0, batch.indices)))
        self.train(was_training)
        return predicted

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """As `predict`."""
        return self.predict(batch)

    def model_header(self) -> dict[str, Any]:
        """What a model file tells of the run that it comes from: plain data only."""
        return {
            **{name: each for name, each in self.weights_header().items() if name in ("task", "step", "epoch")},
            "target_names": self.target_names,
            "num_targets": self.num_targets,
            "image_size": self.image_size,
            "ranges": getattr(self.data, "ranges", {}),
            **self.covariates_header(),
        }

    # ---- validation and test

    def on_validation_epoch_start(self) -> None:
        """Starts to collect."""
        super().on_validation_epoch_start()
        self._seen = []

    def on_test_epoch_start(self) -> None:
        """Starts to collect."""
        super().on_test_epoch_start()
        self._seen = []

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """The loss of a validation batch, measured, and what was predicted."""
        self._collect("val", batch)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """The loss of a test batch, measured, and what was predicted."""
        self._collect("test", batch)

    def on_validation_epoch_end(self) -> None:
        """Logs what was measured."""
        super().on_validation_epoch_end()
        self._log_figures("val")

    def on_test_epoch_end(self) -> None:
        """Logs what was measured."""
        super().on_test_epoch_end()
        self._log_figures("test")

    def _collect(self, stage: str, batch: Any) -> None:
        features = self.encode(batch, sample_keys(self.seed, 0, batch.indices))
        outputs = self.head(features)
        loss = self.target_loss(outputs, batch.targets)
        self.measure(stage, StepOutput(loss, features, {}), len(batch.indices))
        self._seen.append((self.predictions(outputs).detach().double(), batch.targets))

    def collected(self) -> tuple[Tensor, Tensor]:
        """What was collected, of all processes: predictions and targets ``[images, num_targets]``, on the CPU."""
        predicted, targets = (torch.cat([each[place] for each in self._seen]) for place in range(2))
        self._seen = []
        return gather_uneven(predicted)[0].cpu(), gather_uneven(targets)[0].cpu()

    def _log_figures(self, stage: str) -> None:
        if not self._seen:
            return
        for name, value in self.figures(stage, *self.collected()).items():
            # Lightning refuses a name that holds its own word for loaders, unless it is told to add none
            self.log(f"{stage}/{name}", value, batch_size=1, sync_dist=world_size() > 1, add_dataloader_idx=False)
