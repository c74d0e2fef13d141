"""Initialisations whose scale follows from the layer's size; for parameters of two or more dimensions."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from ssl_toolkit.errors import nearest
from ssl_toolkit.init.base import Initializer

Distribution = Literal["normal", "uniform"]
Mode = Literal["fan_in", "fan_out"]
XavierActivation = Literal["tanh", "sigmoid", "linear"]

_DISTRIBUTIONS = get_args(Distribution)


class _Scaled(Initializer):
    """Draws from a distribution with the variance that a layer's size asks for."""

    takes_vectors = False

    def __init__(self, pattern: str, distribution: Distribution) -> None:
        super().__init__(pattern)
        _check_choice("distribution", distribution, _DISTRIBUTIONS)
        self.distribution = distribution

    @abstractmethod
    def variance(self, fan_in: int, fan_out: int) -> float:
        """The variance of a layer with so many inputs of a unit, and so many units that an input goes to."""

    def fill(self, parameter: Tensor) -> None:
        """Draws the numbers."""
        std = math.sqrt(self.variance(*fans(parameter)))
        if self.distribution == "normal":
            nn.init.normal_(parameter, std=std)
        else:
            nn.init.uniform_(parameter, -math.sqrt(3) * std, math.sqrt(3) * std)


class Xavier(_Scaled):
    """Xavier or Glorot initialisation: variance gain^2 * 2 / (fan_in + fan_out), for tanh and sigmoid (Glorot and
    Bengio 2010, equations 12 and 16).

    Args:
        pattern: Regular expression, searched in the names of the parameters (of two or more dimensions).
        distribution: ``uniform`` (the paper's) or ``normal``.
        activation: Of the layer, which settles the gain: 1 for ``linear`` and ``sigmoid``, 5/3 for ``tanh``.
    """

    def __init__(
        self, pattern: str, distribution: Distribution = "uniform", activation: XavierActivation = "linear"
    ) -> None:
        super().__init__(pattern, distribution)
        _check_choice("activation", activation, get_args(XavierActivation))
        self.activation: XavierActivation = activation

    def variance(self, fan_in: int, fan_out: int) -> float:
        """Keeps the variance of activations and gradients, as far as both can be kept."""
        return nn.init.calculate_gain(self.activation) ** 2 * 2 / (fan_in + fan_out)


class Kaiming(_Scaled):
    """Kaiming or He initialisation: variance 2 / ((1 + slope^2) fan), for ReLU and leaky ReLU (He et al. 2015, arXiv
    1502.01852, equations 10, 15).

    Args:
        pattern: Regular expression, searched in the names of the parameters (of two or more dimensions).
        mode: Keep the variance of the activations (``fan_in``) or of the gradients (``fan_out``).
        distribution: ``normal`` (the paper's) or ``uniform``.
        negative_slope: Of a leaky ReLU; 0 for ReLU.
    """

    def __init__(
        self,
        pattern: str,
        mode: Mode = "fan_in",
        distribution: Distribution = "normal",
        negative_slope: float = 0.0,
    ) -> None:
        super().__init__(pattern, distribution)
        _check_choice("mode", mode, get_args(Mode))
        self.mode = mode
        self.negative_slope = negative_slope

    def variance(self, fan_in: int, fan_out: int) -> float:
        """Keeps the variance through the layer and its activation."""
        return 2 / (1 + self.negative_slope**2) / (fan_in if self.mode == "fan_in" else fan_out)


class LeCun(_Scaled):
    """LeCun initialisation: variance 1 / fan_in, for layers without activation (LeCun et al. 1998, "Efficient
    BackProp", equation 16).

    Args:
        pattern: Regular expression, searched in the names of the parameters (of two or more dimensions).
        distribution: ``normal`` or ``uniform``.
    """

    def __init__(self, pattern: str, distribution: Distribution = "normal") -> None:
        super().__init__(pattern, distribution)

    def variance(self, fan_in: int, fan_out: int) -> float:
        """Keeps the variance through the layer alone."""
        return 1 / fan_in


class Orthogonal(Initializer):
    """Orthogonal initialisation: orthonormal rows or columns, whichever are fewer (Saxe, McClelland, Ganguli 2014,
    arXiv 1312.6120).

    Args:
        pattern: Regular expression, searched in the names of the parameters (of two or more dimensions).
        gain: Factor on the matrix; 1.41 for ReLU.
    """

    takes_vectors = False

    def __init__(self, pattern: str, gain: float = 1.0) -> None:
        super().__init__(pattern)
        self.gain = gain

    def fill(self, parameter: Tensor) -> None:
        """Draws an orthogonal matrix; a convolution's has a row for each output."""
        nn.init.orthogonal_(parameter, self.gain)


class Sparse(Initializer):
    """Sparse initialisation: a few normal numbers into each unit, zeros elsewhere (Martens 2010, section 5).

    Args:
        pattern: Regular expression, searched in the names of the parameters (of two or more dimensions).
        num_inputs: Inputs of a unit that are not 0, at least 1 (the paper: 15); all, if it has fewer.
        std: Their standard deviation.
    """

    takes_vectors = False

    def __init__(self, pattern: str, num_inputs: int = 15, std: float = 1.0) -> None:
        super().__init__(pattern)
        if num_inputs < 1:
            raise ValueError(f"init: num_inputs is {num_inputs}, expected at least 1")
        self.num_inputs = num_inputs
        self.std = std

    def fill(self, parameter: Tensor) -> None:
        """Chooses the inputs of each unit, and draws their weights."""
        rows = parameter.flatten(1)
        chosen = torch.rand(rows.shape).argsort(dim=1)[:, : self.num_inputs].to(parameter.device)
        drawn = self.std * torch.randn(chosen.shape)
        parameter.copy_(torch.zeros_like(rows).scatter(1, chosen, drawn.to(rows)).view_as(parameter))


class Identity(Initializer):
    """Identity initialisation; for a convolution, one at the middle of the kernel (Dirac).

    Used in residual and recurrent networks (Le, Jaitly, Hinton 2015, arXiv 1504.00941; Zagoruyko and Komodakis 2017,
    arXiv 1706.00388).

    Args:
        pattern: Regular expression, searched in the names of the parameters (of two or more dimensions).
        gain: Factor on the input.
    """

    takes_vectors = False

    def __init__(self, pattern: str, gain: float = 1.0) -> None:
        super().__init__(pattern)
        self.gain = gain

    def fill(self, parameter: Tensor) -> None:
        """Sets the gain where output and input have the same number, and zeros."""
        if parameter.ndim == 2:
            nn.init.eye_(parameter)
        else:
            nn.init.dirac_(parameter)
        parameter.mul_(self.gain)


class ZeroGamma(Initializer):
    """Zero-gamma initialisation: zeros for the last normalisation of each residual block, which begins as the identity.

    Goyal et al. 2017, arXiv 1706.02677, section 5.1. For networks of timm with residual blocks, many of which begin so
    already (`zero_init_last`); for others name the parameters, and set them by `Zeros`.

    Args:
        pattern: Regular expression, searched in the names of the blocks' parameters; all blocks by default.
    """

    def __init__(self, pattern: str = "") -> None:
        super().__init__(pattern)

    def names(self, module: nn.Module) -> list[str]:
        """The scales that timm's own method sets."""
        found = []
        for block_name, block in module.named_modules():
            if not hasattr(block, "zero_init_last"):
                continue
            kept = {name: parameter.detach().clone() for name, parameter in block.named_parameters()}
            for parameter in block.parameters():
                parameter.data.fill_(1.0)
            block.zero_init_last()  # pyright: ignore[reportCallIssue]
            for name, parameter in block.named_parameters():
                if not parameter.any() and self._takes(f"{block_name}.{name}", parameter):
                    found.append(f"{block_name}.{name}")
                parameter.data.copy_(kept[name])
        if not found:
            raise ValueError(f"init: ZeroGamma finds no residual block of timm with a parameter named {self.pattern!r}")
        return found

    def fill(self, parameter: Tensor) -> None:
        """Sets zeros."""
        nn.init.zeros_(parameter)


def fans(parameter: Tensor) -> tuple[int, int]:
    """Fan-in and fan-out, kernel positions counted."""
    area = math.prod(parameter.shape[2:])
    return parameter.shape[1] * area, parameter.shape[0] * area


def _check_choice(name: str, given: str, valid: tuple[str, ...]) -> None:
    if given not in valid:
        raise ValueError(f"init: {name} is {given!r}, expected {' or '.join(valid)}{nearest(given, valid)}")
