"""`MultiplicativeInteraction`: a layer of two inputs that multiplies them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from jaxtyping import Float


class MultiplicativeInteraction(nn.Module):
    """A bilinear layer with its linear terms: each output is a quadratic form of the two inputs.

    ``y_k = x^T W_k z + u_k^T z + v_k^T x + b_k`` (Jayakumar et al. 2020, "Multiplicative Interactions and Where to Find
    Them", equation 1). One input chooses the linear map that is applied to the other, which a layer on the two side by
    side cannot: their inner product is W = I here, while an MLP on both only approximates it. With a rank, W_k is a sum
    of that many products of vectors that all outputs share (Kim et al. 2017, arXiv 1610.04325, equation 3): ``rank *
    (first + second + outputs)`` numbers in place of ``first * second * outputs``.

    Args:
        first: Width of the first input, at least 1: features, say.
        second: Width of the second, at least 1: features of another image, or a vector of covariates.
        outputs: Width of the output, at least 1.
        rank: Of W; None for a full one.
        bias: Whether there is a b.

    Raises:
        ValueError: A width or the rank is below 1.
    """

    def __init__(self, first: int, second: int, outputs: int, rank: int | None = None, bias: bool = True) -> None:
        super().__init__()
        for name, value in (("first", first), ("second", second), ("outputs", outputs), ("rank", rank)):
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}, expected at least 1")
        self.linear = nn.Linear(first + second, outputs, bias=bias)
        # the products of two inputs of variance 1 have the variance 1 at first
        if rank is None:
            self.products = nn.Parameter(torch.randn(outputs, first, second) / math.sqrt(first * second))
        else:
            self.of_first = nn.Parameter(torch.randn(rank, first) / math.sqrt(first))
            self.of_second = nn.Parameter(torch.randn(rank, second) / math.sqrt(second))
            self.mix = nn.Parameter(torch.randn(outputs, rank) / math.sqrt(rank))
        self.rank = rank

    def forward(
        self, x: Float[Tensor, "batch first"], z: Float[Tensor, "batch second"]
    ) -> Float[Tensor, "batch outputs"]:
        """The outputs.

        Args:
            x: Float tensor of shape ``[batch, first]``.
            z: Float tensor of shape ``[batch, second]``.
        """
        if self.rank is None:
            products = torch.einsum("bi,oij,bj->bo", x, self.products, z)
        else:
            products = ((x @ self.of_first.T) * (z @ self.of_second.T)) @ self.mix.T
        return products + self.linear(torch.cat([x, z], dim=1))
