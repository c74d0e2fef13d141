"""Initialisations of chosen parameters, shared by pretext and downstream tasks."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod

from torch import Tensor, nn


class Initializer(ABC):
    """Sets the parameters whose names match a regular expression, once, before training.

    Args:
        pattern: Regular expression, searched in the names of the task's parameters (``head.weight``, say).
    """

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern

    @abstractmethod
    def fill(self, parameter: Tensor) -> None:
        """Sets one parameter in place; called without gradient."""

    def __call__(self, module: nn.Module) -> list[str]:
        """Sets the matching parameters.

        Returns:
            The names of the parameters that were set.

        Raises:
            ValueError: If no parameter's name matches.
        """
        names = [name for name, _ in module.named_parameters() if re.search(self.pattern, name)]
        if not names:
            examples = ", ".join([name for name, _ in module.named_parameters()][-3:])
            raise ValueError(f"init: no parameter's name matches {self.pattern!r}; names look like {examples}")
        for name in names:
            self.fill(module.get_parameter(name).data)
        return names


class Zeros(Initializer):
    """All zeros (right for a head's bias, and for the last scale of a residual branch).

    Args:
        pattern: Regular expression, searched in the names of the parameters.
    """

    def fill(self, parameter: Tensor) -> None:
        """Sets zeros."""
        nn.init.zeros_(parameter)


class Normal(Initializer):
    """Normal around 0.

    Args:
        pattern: Regular expression, searched in the names of the parameters.
        std: Standard deviation.
    """

    def __init__(self, pattern: str, std: float = 0.01) -> None:
        super().__init__(pattern)
        self.std = std

    def fill(self, parameter: Tensor) -> None:
        """Draws normal numbers."""
        nn.init.normal_(parameter, std=self.std)


class Kaiming(Initializer):
    """Normal with variance 2 / fan, for ReLU networks (He et al. 2015, arXiv 1502.01852, equation 10).

    Args:
        pattern: Regular expression, searched in the names of the parameters (of two or more dimensions).
        mode: Keep the variance of the activations (``fan_in``) or of the gradients (``fan_out``).
    """

    def __init__(self, pattern: str, mode: str = "fan_in") -> None:
        super().__init__(pattern)
        self.mode = mode

    def fill(self, parameter: Tensor) -> None:
        """Draws normal numbers."""
        nn.init.kaiming_normal_(parameter, mode=self.mode, nonlinearity="relu")  # pyright: ignore[reportArgumentType]


class Xavier(Initializer):
    """Uniform with variance 2 / (fan_in + fan_out), for tanh and sigmoid (Glorot and Bengio 2010, equation 16).

    Args:
        pattern: Regular expression, searched in the names of the parameters (of two or more dimensions).
    """

    def fill(self, parameter: Tensor) -> None:
        """Draws uniform numbers."""
        nn.init.xavier_uniform_(parameter)
