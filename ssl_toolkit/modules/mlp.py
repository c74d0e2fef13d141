"""The multilayer perceptron: projectors, predictors and heads."""

from __future__ import annotations

from itertools import pairwise

from torch import nn


def mlp(
    widths: list[int], *, norm: bool = True, last_norm: bool = False, last_bias: bool = True, dropout: float = 0.0
) -> nn.Sequential:
    """A multilayer perceptron: linear layers with BatchNorm, ReLU and dropout between them.

    Args:
        widths: Input width, hidden widths, output width.
        norm: BatchNorm after each hidden layer (which then has no bias).
        last_norm: BatchNorm without scale and shift after the last layer (which then has no bias).
        last_bias: Whether the last layer has a bias.
        dropout: Fraction of hidden units that are dropped, 0 to 1.
    """
    layers: list[nn.Module] = []
    for i, (num_inputs, num_outputs) in enumerate(pairwise(widths)):
        hidden = i < len(widths) - 2
        layers.append(nn.Linear(num_inputs, num_outputs, bias=not norm if hidden else last_bias and not last_norm))
        if hidden:
            layers += [nn.BatchNorm1d(num_outputs)] if norm else []
            layers.append(nn.ReLU(inplace=True))
            layers += [nn.Dropout(dropout)] if dropout else []
        elif last_norm:
            layers.append(nn.BatchNorm1d(num_outputs, affine=False))
    return nn.Sequential(*layers)
