"""Noise on the images, the activations, the weights and the gradients: a network that bears it is a smoother one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ssl_toolkit.random import number
from ssl_toolkit.regularization.base import Regularizer, Result, modules, weights
from ssl_toolkit.step import StepContext


class InputNoise(Regularizer):
    """Normal noise on what the backbone sees in training (Bishop 1995: to first order a penalty on the gradient).

    Args:
        std: Its standard deviation, 0 or more, in the units of the images, which go from 0 to 1.
    """

    shardable = True

    def __init__(self, std: float) -> None:
        self.std = _zero_or_more("std", std)

    def prepare(self, task: Any) -> None:
        """Has the backbone's input changed."""

        def change(module: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
            if not module.training:
                return None
            return inputs[0] + self.std * torch.randn_like(inputs[0]), *inputs[1:]

        task.backbone.register_forward_pre_hook(change)


class ActivationNoise(Regularizer):
    """Normal noise on the outputs of modules in training.

    Args:
        std: Its standard deviation over that of the output, 0 or more.
        pattern: Regular expression, searched in the names of the task's modules (``backbone.model.layer2$``, say).
    """

    shardable = True

    def __init__(self, std: float, pattern: str) -> None:
        self.std = _zero_or_more("std", std)
        self.pattern = pattern

    def prepare(self, task: Any) -> None:
        """Has the outputs changed."""

        def change(module: Any, inputs: Any, output: Tensor) -> Tensor | None:
            if not module.training:
                return None
            return output + self.std * output.detach().std() * torch.randn_like(output)

        for module in modules(task, self.pattern):
            module.register_forward_hook(change)


class WeightNoise(Regularizer):
    """Normal noise on weights while a step's gradient is computed (Graves 2011, section 4), the same in every process.

    Args:
        std: Its standard deviation over that of the weights of the layer, 0 or more.
        pattern: Regular expression, searched in the names of the parameters; biases and other parameters of one
            dimension are left alone.
    """

    def __init__(self, std: float, pattern: str = "") -> None:
        self.std = _zero_or_more("std", std)
        self.pattern = pattern
        self._is_there = False

    def around(self, task: Any, context: StepContext, compute: Callable[[], Result]) -> Result:
        """Computes the loss with noisy weights, which stay so until its gradient is known."""
        # once, also if another regularizer computes the loss twice
        if not self._is_there:
            self._add(task)
        return compute()

    @torch.no_grad()
    def _add(self, task: Any) -> None:
        kept = []
        for index, weight in enumerate(weights(task, self.pattern).values()):
            generator = _same_everywhere("weight noise", task, weight, index)
            noise = torch.randn(weight.shape, generator=generator, device=weight.device)
            kept.append((weight, weight.detach().clone()))
            weight.add_(noise, alpha=self.std * float(weight.std()))
        # else autocast would go on with its copies of the weights as they were
        torch.clear_autocast_cache()
        self._is_there = True
        task.undo_after_backward(partial(self._take_away, kept))

    @torch.no_grad()
    def _take_away(self, kept: list[tuple[Tensor, Tensor]]) -> None:
        """Puts the weights back, to the last bit."""
        for weight, value in kept:
            weight.copy_(value)
        self._is_there = False


class GradientNoise(Regularizer):
    """Normal noise on the gradients, less and less of it, the same in every process.

    Its variance at step t is ``variance / (1 + t)^decay`` (Neelakantan et al. 2015, arXiv 1511.06807, equation 1).

    Args:
        variance: At the first step, 0 or more; the paper's eta: 0.01, 0.3 or 1.
        decay: The paper's gamma, 0 or more.
    """

    changes_gradients = True

    def __init__(self, variance: float = 0.01, decay: float = 0.55) -> None:
        self.variance = _zero_or_more("variance", variance)
        self.decay = _zero_or_more("decay", decay)

    @torch.no_grad()
    def before_optimizer_step(self, task: Any) -> None:
        """Adds the noise."""
        std = (self.variance / (1 + task.global_step) ** self.decay) ** 0.5
        for index, parameter in enumerate(task.parameters()):
            if parameter.grad is not None:
                generator = _same_everywhere("gradient noise", task, parameter, index)
                noise = torch.randn(parameter.shape, generator=generator, device=parameter.device)
                parameter.grad.add_(noise, alpha=std)


def _same_everywhere(label: str, task: Any, tensor: Tensor, index: int) -> torch.Generator:
    """A generator for a parameter in a step, the same in every process."""
    return torch.Generator(tensor.device).manual_seed(number(label, task.seed, task.global_step, index))


def _zero_or_more(name: str, value: float) -> float:
    if value < 0:
        raise ValueError(f"regularizers: {name} is {value}, expected 0 or more")
    return value
