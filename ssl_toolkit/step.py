"""Step context and step output: what a loss gets beside the views, and what it returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor

from ssl_toolkit.losses.soft_targets import Mixing, SoftTargets, soften
from ssl_toolkit.schedule import Progress


@dataclass
class StepContext:
    """Step context: what a loss depends on beside its views (or features) and the weights.

    Attributes:
        training: Whether it is a step of training; False for validation and test.
        progress: How far the run is; schedules of numbers follow it (`ssl_toolkit.schedule.value_at`).
        batch: What the loader has delivered.
        mixing: Which samples are mixed; None where none are. Regularizers set it when the backbone sees the images, so
            a loss asks for it after that.
        smoothing: Fraction of the targets that is spread over all classes.
    """

    training: bool = True
    progress: Progress = field(default_factory=Progress)
    batch: Any = None
    mixing: Mixing | None = None
    smoothing: float = 0.0

    def sample_weights(self) -> Tensor | None:
        """How much each sample counts in training: float tensor of shape ``[batch]``; None for alike.

        A mixed sample counts as the mixture of its two.
        """
        weights: Tensor | None = getattr(self.batch, "weights", None) if self.training else None
        if weights is None or self.mixing is None:
            return weights
        share = self.mixing.weights.to(weights)
        return share * weights + (1 - share) * weights[self.mixing.partners]

    def soften(self, targets: Tensor) -> SoftTargets:
        """The soft targets that mixing and smoothing make of classes (int64 tensor of shape ``[batch]``)."""
        return soften(targets, self.mixing, self.smoothing)


class StepOutput(NamedTuple):
    """Step output: what a task computes from a batch.

    Attributes:
        loss: Scalar to minimise.
        features: The backbone's output, of shape ``[n, num_features]``.
        metrics: Scalars to log, by name; they need no gradient.
        kept: Tensors of shape ``[batch, ...]`` by name, for `ssl_toolkit.task.Task.after_optimizer_step`.
    """

    loss: Tensor
    features: Tensor
    metrics: dict[str, Tensor]
    kept: dict[str, Tensor] = {}  # noqa: RUF012 - never changed
