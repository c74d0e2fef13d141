"""Flatness of a minimum: the loss along random directions through the weights.

Li, Xu, Taylor, Studer, Goldstein 2018, "Visualizing the loss landscape of neural nets", arXiv 1712.09913, section 4:
each filter of a random direction is given the length of the network's own filter, because a network of ReLU layers
computes the same when one layer's weights are doubled and the next one's halved, and a fixed distance would mean
something else then. Biases and the parameters of normalisation layers stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ssl_toolkit.random import number

if TYPE_CHECKING:
    from jaxtyping import Float


class Flatness(NamedTuple):
    """The loss around a minimum.

    Attributes:
        alphas: float64 array of shape ``[num_points]``, rising, with a 0 in it: the distance as a fraction of the
            weights' own length.
        losses: float64 array of shape ``[num_directions, num_points]``.
    """

    alphas: NDArray[np.float64]
    losses: NDArray[np.float64]

    @property
    def loss(self) -> float:
        """The loss at the weights themselves."""
        return float(self.losses[0, self.alphas == 0][0])

    def rise(self, radius: float) -> tuple[float, float]:
        """How much the loss rises at a distance, one number for how flat the minimum is: less is flatter.

        Args:
            radius: The distance as a fraction of the weights' length, in (0, 1]; between two points by interpolation.

        Returns:
            The mean over the directions, each followed both ways, and the standard deviation over the directions.
        """
        rises = [
            (np.interp(radius, self.alphas, losses) + np.interp(-radius, self.alphas, losses)) / 2 - self.loss
            for losses in self.losses
        ]
        return float(np.mean(rises)), float(np.std(rises, ddof=1)) if len(rises) > 1 else float("nan")


def flatness(
    loss: Callable[[], float],
    parameters: Mapping[str, Tensor],
    alphas: Sequence[float],
    num_directions: int = 5,
    seed: int = 0,
) -> Flatness:
    """Flatness: the loss along random directions. The parameters are restored to the last bit.

    Args:
        loss: Computes the loss with the parameters as they are, always in the same way.
        parameters: The weights by name, of which those of two dimensions and more are moved.
        alphas: Distances as fractions of the weights' own length.
        num_directions: How many directions.
        seed: Of the directions, which depend on the names and shapes of the parameters, too.

    Raises:
        ValueError: There is nothing to move, or not one direction.
    """
    moved = {name: weight for name, weight in parameters.items() if weight.ndim > 1}
    if not moved:
        raise ValueError("flatness: there are no weights of two or more dimensions to move")
    if num_directions < 1:
        raise ValueError(f"directions is {num_directions}, expected at least 1")
    points = sorted({0.0, *map(float, alphas)})
    middle, losses = loss(), []
    for index in range(num_directions):
        directions = {name: direction(weight, seed, index, name) for name, weight in moved.items()}
        line = []
        for alpha in points:
            with _moved(moved, directions, alpha):
                line.append(loss() if alpha else middle)
        losses.append(line)
    return Flatness(np.array(points), np.array(losses))


def direction(weight: Float[Tensor, "*shape"], seed: int, index: int, name: str) -> Float[Tensor, "*shape"]:
    """A random direction, each of whose filters is as long as that of the weight (section 4).

    Args:
        weight: Of shape ``[filters, ...]``.
        seed: Of all directions.
        index: Which of them.
        name: The weight's name.
    """
    generator = torch.Generator().manual_seed(number("flatness", seed, index, name))
    drawn = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
    dims = tuple(range(1, weight.ndim))
    length = drawn.square().sum(dims, keepdim=True).sqrt()
    own = weight.detach().double().cpu().square().sum(dims, keepdim=True).sqrt()
    return (drawn / length * own).to(weight.device, weight.dtype)


@contextmanager
@torch.no_grad()
def _moved(weights: Mapping[str, Tensor], directions: Mapping[str, Tensor], alpha: float) -> Iterator[None]:
    kept = {name: weight.detach().clone() for name, weight in weights.items()}
    try:
        for name, weight in weights.items():
            weight.add_(directions[name], alpha=alpha)
        yield
    finally:
        for name, weight in weights.items():
            weight.copy_(kept[name])
