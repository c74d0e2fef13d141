"""Convolutions on feature maps of one to four places, as fully connected layers.

    quicken_small_maps(model)                      # in place; nothing that the model computes changes

A convolution is a fully connected layer whose weights are shared between places and 0 where two places are further
apart than the kernel reaches (Goodfellow et al. 2016, "Deep Learning", section 9.2). On a map of 2x2 places that the
kernel covers, nothing is 0 and the shared layer saves nothing. There oneDNN's convolutions, and their gradients above
all, are several times as slow on a processor as the same sum written as a product of two matrices. Small images have
such maps: a ResNet-18 ends with 1x1 for images of 32 pixels, with 2x2 without the pooling of its stem.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from jaxtyping import Float

MOST_PAIRS = 16  # of a place before and a place after; beyond it the convolution is quicker
LEAST_CHANNELS, LEAST_BATCH = 64, 64  # below, the matrix takes as long to write as it saves


def quicken_small_maps(model: nn.Module) -> None:
    """Has a network's convolutions compute small maps as fully connected layers on a processor, in place.

    Its parameters and what it computes stay, but for the order in which numbers are summed.

    Args:
        model: A network; its plain convolutions are changed, those of other classes stay.
    """
    for layer in model.modules():
        if type(layer) is nn.Conv2d:
            # the new class adds no attribute, and so hooks and whatever else timm gave the layer stay
            layer.__class__ = SmallMapConv2d


class SmallMapConv2d(nn.Conv2d):
    """A convolution that is a fully connected layer where the map is small and that is quicker."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self._is_small(input):
            padding = cast(tuple[int, int], self.padding)
            return convolve_as_linear(input, weight, bias, cast(tuple[int, int], self.stride), padding)
        return super()._conv_forward(input, weight, bias)

    def _is_small(self, input: Tensor) -> bool:
        # a graph that is compiled or exported holds for maps and batches of other sizes
        if input.device.type != "cpu" or torch.compiler.is_compiling() or torch.jit.is_tracing():
            return False
        if self.kernel_size == (1, 1) or self.groups != 1 or self.dilation != (1, 1) or self.padding_mode != "zeros":
            return False
        if isinstance(self.padding, str) or input.ndim != 4:
            return False
        places = _places_after(input, self.kernel_size, self.stride, self.padding)
        pairs = input.shape[2] * input.shape[3] * places[0] * places[1]
        return (
            0 < pairs <= MOST_PAIRS
            and min(places) > 0
            and len(input) >= LEAST_BATCH
            and min(self.in_channels, self.out_channels) >= LEAST_CHANNELS
        )


def convolve_as_linear(
    x: Float[Tensor, "batch in_channels height width"],
    weight: Float[Tensor, "out_channels in_channels kernel_height kernel_width"],
    bias: Float[Tensor, " out_channels"] | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
) -> Float[Tensor, "batch out_channels new_height new_width"]:
    """A convolution as one product of matrices: all places before with all places after.

    Args:
        x: ``[batch, in_channels, height, width]``.
        weight: ``[out_channels, in_channels, kernel_height, kernel_width]``.
        bias: ``[out_channels]``, or None.
        stride: Rows and columns between two places after.
        padding: Rows and columns of zeros on each side.

    Returns:
        What ``torch.nn.functional.conv2d`` returns, ``[batch, out_channels, new_height, new_width]``.
    """
    batch, _, height, width = x.shape
    outputs, kernel = len(weight), weight.shape[2:]
    new_height, new_width = _places_after(x, kernel, stride, padding)
    taps = weight.permute(2, 3, 0, 1)
    out_of_reach = torch.zeros_like(taps[0, 0])

    def block(new_row: int, new_column: int, row: int, column: int) -> Tensor:
        tap = row - new_row * stride[0] + padding[0], column - new_column * stride[1] + padding[1]
        return taps[tap] if 0 <= tap[0] < kernel[0] and 0 <= tap[1] < kernel[1] else out_of_reach

    rows = [
        torch.cat([block(new_row, new_column, row, column) for row in range(height) for column in range(width)], dim=1)
        for new_row in range(new_height)
        for new_column in range(new_width)
    ]
    bias = None if bias is None else bias.repeat(len(rows))
    result = F.linear(x.permute(0, 2, 3, 1).reshape(batch, -1), torch.cat(rows), bias)
    return result.view(batch, new_height, new_width, outputs).permute(0, 3, 1, 2)


def _places_after(
    x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...], padding: tuple[int, ...]
) -> tuple[int, int]:
    """Rows and columns of the map that a convolution gives."""
    height, width = ((x.shape[2 + axis] + 2 * padding[axis] - kernel[axis]) // stride[axis] + 1 for axis in range(2))
    return height, width
