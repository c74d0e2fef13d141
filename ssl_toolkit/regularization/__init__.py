"""Penalties added to the loss of any task, pretext or downstream."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn


class Regularizer(ABC):
    """A penalty that a task adds to its loss at each training step."""

    @abstractmethod
    def penalty(self, module: nn.Module, features: Tensor) -> Tensor:
        """The penalty.

        Args:
            module: The task.
            features: The backbone's output in this step, of shape ``[batch, num_features]``.

        Returns:
            A scalar.
        """


class L1(Regularizer):
    """Sum of the absolute values of weights, which drives small ones to zero (Tibshirani 1996, equation 1).

    Args:
        strength: Factor on the sum, 0 or more.
        pattern: Regular expression, searched in the names of the parameters; biases and other parameters of one
            dimension are never penalised.
    """

    def __init__(self, strength: float, pattern: str = "") -> None:
        self.strength = strength
        self.pattern = pattern

    def penalty(self, module: nn.Module, features: Tensor) -> Tensor:
        """The scaled sum over the trainable weights that match."""
        sums = [
            parameter.abs().sum()
            for name, parameter in module.named_parameters()
            if parameter.requires_grad and parameter.ndim > 1 and re.search(self.pattern, name)
        ]
        if not sums:
            raise ValueError(f"regularizers: no trainable weight's name matches {self.pattern!r}")
        return self.strength * torch.stack(sums).sum()


class FeatureNorm(Regularizer):
    """Mean squared length of the features, which keeps their scale in bounds.

    Args:
        strength: Factor on the mean, 0 or more.
    """

    def __init__(self, strength: float) -> None:
        self.strength = strength

    def penalty(self, module: nn.Module, features: Tensor) -> Tensor:
        """The scaled mean over the batch."""
        return self.strength * features.float().square().sum(dim=-1).mean()
