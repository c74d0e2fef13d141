"""`Initializer`: the base class of initialisations."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable

from torch import Tensor, nn


class Initializer(ABC):
    """Base class of initialisations: sets the parameters whose names match a regular expression, once, before training.

    Args:
        pattern: Regular expression, searched in the names of the task's parameters (``head.weight``, say).
    """

    # whether it is made for biases and the scales and shifts of normalisation layers, too
    takes_vectors = True

    def __init__(self, pattern: str) -> None:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"init: pattern {pattern!r} is no regular expression: {error}") from None
        self.pattern = pattern

    @abstractmethod
    def fill(self, parameter: Tensor) -> None:
        """Sets one parameter in place; called without gradient."""

    def names(self, module: nn.Module) -> list[str]:
        """The names of the parameters that it sets.

        Raises:
            ValueError: If there are none.
        """
        found = [name for name, parameter in module.named_parameters() if self._takes(name, parameter)]
        if not found:
            examples = ", ".join([name for name, _ in module.named_parameters()][-3:])
            kind = "parameter" if self.takes_vectors else "parameter of two or more dimensions"
            raise ValueError(f"init: no {kind} has a name that matches {self.pattern!r}; names look like {examples}")
        return found

    def _takes(self, name: str, parameter: Tensor) -> bool:
        return bool(re.search(self.pattern, name)) and (self.takes_vectors or parameter.ndim > 1)

    def __call__(self, module: nn.Module) -> list[str]:
        """Sets the matching parameters, and returns their names."""
        names = self.names(module)
        for name in names:
            self.fill(module.get_parameter(name).data)
        return names


def check_covered(initializers: Iterable[Initializer], module: nn.Module) -> None:
    """Raises a ValueError for a trainable parameter that no initializer sets: none is forgotten."""
    covered = {name for initializer in initializers for name in initializer.names(module)}
    trainable = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    if left := [name for name in trainable if name not in covered]:
        more = f" and {len(left) - 3} more" if len(left) > 3 else ""
        only_vectors = all(trainable[name].ndim < 2 for name in left)
        dimension = " (of one dimension, for which few are made)" if only_vectors else ""
        raise ValueError(
            f"init: nothing is said of {', '.join(left[:3])}{more}{dimension}; give an initialisation for each "
            "parameter, ssl_toolkit.init.Keep for those that shall stay as their layers made them"
        )
