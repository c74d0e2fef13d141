"""`Regularizer`: the base class of regularizers."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from ssl_toolkit.modules import EMATeacher
from ssl_toolkit.step import StepContext

Result = TypeVar("Result")


class Regularizer:
    """Base class of regularizers, which act at each training step beside the loss. A new one defines what it needs.

    What is drawn at random comes from torch's own generator, which a task seeds at each step; what must be the same in
    every process is drawn from a separate generator.

    Attributes:
        changes_gradients: Whether `before_optimizer_step` does something.
        shardable: Whether it works where each process holds a part of the weights (``trainer.strategy: fsdp2``): it
            neither reads nor changes weights or their gradients.
    """

    changes_gradients: ClassVar[bool] = False
    shardable: ClassVar[bool] = False

    def check(self, task: Any) -> None:
        """Raises a ValueError if the task cannot do what the regularizer needs; before anything is written."""

    def prepare(self, task: Any) -> None:
        """Called once, before training, with the weights that the training starts from.

        Args:
            task: The `ssl_toolkit.task.Task`.
        """

    def penalty(self, task: nn.Module, features: Tensor) -> Tensor | None:
        """A scalar that is added to the loss, or None.

        Args:
            task: The task.
            features: The backbone's output in this step, of shape ``[batch, num_features]``.
        """

    def around(self, task: Any, context: StepContext, compute: Callable[[], Result]) -> Result:
        """Computes the loss of a batch, under what the regularizer does to the network.

        What must last until the gradient is known is undone by what is given to ``task.undo_after_backward``.

        Args:
            task: The task.
            context: What the loss is computed with: the batch, and what regularizers have to say to the loss.
            compute: Returns a tuple: the loss with the penalties, and what else comes of the batch. It may be called
                more than once.
        """
        return compute()

    def before_optimizer_step(self, task: Any) -> None:
        """Called when the gradients of a step are complete."""


class Penalty(Regularizer, ABC):
    """Base class of penalties: a scalar that is added to the loss.

    Args:
        strength: Factor on it, 0 or more.
    """

    def __init__(self, strength: float) -> None:
        if strength < 0:
            raise ValueError(f"regularizers: strength is {strength}, expected 0 or more")
        self.strength = strength

    def penalty(self, task: nn.Module, features: Tensor) -> Tensor:
        """The penalty times its strength, computed in full precision."""
        with torch.autocast(features.device.type, enabled=False):
            return self.strength * self.value(task, features.float())

    @abstractmethod
    def value(self, task: nn.Module, features: Tensor) -> Tensor:
        """The penalty without its strength, a scalar."""


def weights(module: nn.Module, pattern: str) -> dict[str, nn.Parameter]:
    """The trainable parameters of two or more dimensions whose names match a regular expression, by name.

    Raises:
        ValueError: If there are none.
    """
    found = {
        name: parameter
        for name, parameter in module.named_parameters()
        if parameter.requires_grad and parameter.ndim > 1 and re.search(pattern, name)
    }
    if not found:
        raise ValueError(f"regularizers: no trainable weight's name matches {pattern!r}")
    return found


def modules(module: nn.Module, pattern: str) -> list[nn.Module]:
    """The modules whose names match a regular expression, without those of a teacher, which is not trained.

    Raises:
        ValueError: If there are none.
    """
    named = dict(module.named_modules())
    teachers = tuple(f"{name}." for name, child in named.items() if isinstance(child, EMATeacher))
    named = {name: child for name, child in named.items() if not f"{name}.".startswith(teachers or "\0")}
    found = [child for name, child in named.items() if name and re.search(pattern, name)]
    if not found:
        examples = ", ".join(list(named)[-3:])
        raise ValueError(f"regularizers: no module's name matches {pattern!r}; names look like {examples}")
    return found


def check_probability(value: float, name: str = "probability") -> float:
    """The number itself, if it is at least 0 and less than 1.

    Raises:
        ValueError: If it is not.
    """
    if not 0 <= value < 1:
        raise ValueError(f"regularizers: {name} is {value}, expected at least 0 and less than 1")
    return value
