"""Initialisations whose scale is given."""

from __future__ import annotations

from torch import Tensor, nn

from ssl_toolkit.init.base import Initializer


class Keep(Initializer):
    """Leaves parameters as their layers made them, or as they were loaded.

    Args:
        pattern: Regular expression, searched in the names of the parameters.
    """

    def fill(self, parameter: Tensor) -> None:
        """Does nothing."""


class Zeros(Initializer):
    """All zeros: right for biases, and fatal for weights, whose units then stay equal for ever.

    Args:
        pattern: Regular expression, searched in the names of the parameters.
    """

    def fill(self, parameter: Tensor) -> None:
        """Sets zeros."""
        nn.init.zeros_(parameter)


class Constant(Initializer):
    """One number everywhere.

    Args:
        pattern: Regular expression, searched in the names of the parameters.
        value: The number.
    """

    def __init__(self, pattern: str, value: float = 1.0) -> None:
        super().__init__(pattern)
        self.value = value

    def fill(self, parameter: Tensor) -> None:
        """Sets the number."""
        nn.init.constant_(parameter, self.value)


class Uniform(Initializer):
    """Uniform around 0.

    Args:
        pattern: Regular expression, searched in the names of the parameters.
        bound: Numbers are drawn between minus this and this, above 0.
    """

    def __init__(self, pattern: str, bound: float = 0.05) -> None:
        super().__init__(pattern)
        self.bound = _above_zero("bound", bound)

    def fill(self, parameter: Tensor) -> None:
        """Draws uniform numbers."""
        nn.init.uniform_(parameter, -self.bound, self.bound)


class Normal(Initializer):
    """Normal around 0; with a small ``std`` right for a head, whose first loss is then that of a guess.

    Args:
        pattern: Regular expression, searched in the names of the parameters.
        std: Standard deviation, above 0.
    """

    def __init__(self, pattern: str, std: float = 0.01) -> None:
        super().__init__(pattern)
        self.std = _above_zero("std", std)

    def fill(self, parameter: Tensor) -> None:
        """Draws normal numbers."""
        nn.init.normal_(parameter, std=self.std)


class TruncatedNormal(Initializer):
    """Normal around 0, drawn again beyond two standard deviations.

    Args:
        pattern: Regular expression, searched in the names of the parameters.
        std: Standard deviation before the tails are cut, above 0; what is left has 0.88 of it.
    """

    def __init__(self, pattern: str, std: float = 0.02) -> None:
        super().__init__(pattern)
        self.std = _above_zero("std", std)

    def fill(self, parameter: Tensor) -> None:
        """Draws truncated normal numbers."""
        nn.init.trunc_normal_(parameter, std=self.std, a=-2 * self.std, b=2 * self.std)


def _above_zero(name: str, value: float) -> float:
    if value <= 0:
        raise ValueError(f"init: {name} is {value}, expected a number above 0")
    return value
