"""Manifold MixUp: mixing of a layer's outputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ssl_toolkit.random import number
from ssl_toolkit.regularization.base import Result, modules
from ssl_toolkit.regularization.mixing.base import Rows
from ssl_toolkit.regularization.mixing.images import MixUp
from ssl_toolkit.step import StepContext


class ManifoldMixUp(MixUp):
    """Manifold MixUp: `MixUp` of a layer's outputs (Verma et al. 2019, arXiv 1806.05236, section 2).

    At each step one layer is drawn; the images themselves are mixed by a `MixUp` beside it, if they are to be.

    Args:
        pattern: Regular expression, searched in the names of the task's modules; one of the backbone's modules that
            match is drawn at each step, and its output mixed (``^backbone.model.layer[12]$``, say).
        alpha: Each sample's own weight is drawn from Beta(alpha, alpha), alpha above 0 (the paper: 2).
        probability: Of a sample to be mixed, above 0 and at most 1. Several mixings share the samples among them.
    """

    def __init__(self, pattern: str, alpha: float = 2.0, probability: float = 1.0) -> None:
        super().__init__(alpha, probability)
        self.pattern = pattern
        self._layer: nn.Module | None = None
        # of a forward pass whose layer is still to come
        self._pending: Rows | None = None

    def check(self, task: Any) -> None:
        """Whether the task can mix there."""
        super().check(task)
        if task.compile_backbone:
            raise ValueError("regularizers: ManifoldMixUp does not work within a compiled backbone; set compile: false")
        names = {module: name for name, module in task.named_modules()}
        for module in modules(task, self.pattern):
            name = names[module]
            if name.partition(".")[0] != "backbone":
                raise ValueError(
                    f"regularizers: ManifoldMixUp's pattern {self.pattern!r} matches {name}, expected modules of the "
                    "backbone; let it begin with ^backbone"
                )
            stages = [f"backbone.model.{stage}." for stage in task.backbone.stages]
            if task.gradient_checkpointing and name.startswith(tuple(stages)):
                raise ValueError(
                    f"regularizers: ManifoldMixUp's pattern {self.pattern!r} matches {name}, which "
                    "gradient_checkpointing computes twice; expected whole stages, such as ^backbone.model.layer2$"
                )

    def prepare(self, task: Any) -> None:
        """Has the outputs changed."""
        super().prepare(task)
        self._layers = modules(task, self.pattern)
        for layer in self._layers:
            layer.register_forward_hook(self._after_layer)

    def around(self, task: Any, context: StepContext, compute: Callable[[], Result]) -> Result:
        """Draws the layer, too."""
        drawn = number("manifold mixup", torch.initial_seed())  # the step's
        self._layer = self._layers[drawn % len(self._layers)]
        try:
            result = super().around(task, context, compute)
            if self._pending is not None:
                name = next(name for name, module in task.named_modules() if module is self._layer)
                raise ValueError(
                    f"regularizers: ManifoldMixUp's pattern {self.pattern!r} matches {name}, which the network does "
                    "not use; choose another pattern"
                )
            return result
        finally:
            self._layer = self._pending = None

    def before_backbone(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """Notes which rows are to be mixed in the layer."""
        self._pending = self.next_rows(len(inputs[0]))

    def _after_layer(self, module: nn.Module, inputs: Any, output: Any) -> Tensor | None:
        if module is not self._layer or self._pending is None:
            return None
        rows, self._pending = self._pending, None
        if not isinstance(output, Tensor) or len(output) != len(rows.samples):
            raise ValueError(
                f"regularizers: ManifoldMixUp's pattern {self.pattern!r} matches a {type(module).__name__}, whose "
                "output is not a tensor with a row for each image; choose another pattern"
            )
        return self.mixed(output, rows)
