"""Ridge regression from frozen features to numbers, in closed form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float

# the strongest leaves hardly more than the mean of the training targets, so that features that tell nothing are no
# worse than that
STRENGTHS = tuple(10.0 ** (half / 2) for half in range(-12, 9))


class RidgeFit(NamedTuple):
    """A fitted ridge regression.

    Attributes:
        weight: float64 tensor of shape ``[num_features, num_targets]``, for features as they are.
        bias: float64 tensor of shape ``[num_targets]``.
        strength: Of its L2 penalty.
        target_mean: float64 tensor of shape ``[num_targets]``: of the training targets.
    """

    weight: Tensor
    bias: Tensor
    strength: float
    target_mean: Tensor

    def predict(self, features: Float[Tensor, "rows features"]) -> Float[Tensor, "rows targets"]:
        """float64 tensor of shape ``[rows, num_targets]``."""
        return features.double() @ self.weight + self.bias


def fit_ridge(
    train: tuple[Float[Tensor, "rows features"], Float[Tensor, "rows targets"]],
    val: tuple[Float[Tensor, "others features"], Float[Tensor, "others targets"]],
    strengths: Sequence[float] = STRENGTHS,
) -> RidgeFit:
    """Ridge regression (Hoerl and Kennard 1970, "Ridge regression: biased estimation for nonorthogonal problems").

    It minimises ``mean over rows of |y - z w - b|^2 + strength * |w|^2``, where z are the features standardised by the
    training rows. All is computed in float64, from one eigendecomposition for all
    strengths.

    Args:
        train: Features and targets of the rows that are fitted.
        val: Of the rows on which the strength with the least squared error is chosen; of equals the strongest.
        strengths: To choose from, each above 0.

    Raises:
        ValueError: If there are no rows to fit, or to choose on.
    """
    if not len(train[0]) or not len(val[0]):
        raise ValueError(
            f"a ridge regression needs rows to fit and to choose on, got {len(train[0])} and {len(val[0])}"
        )
    features, targets = train[0].double(), train[1].double()
    mean, target_mean = features.mean(dim=0), targets.mean(dim=0)
    scale = features.std(dim=0, correction=0)
    scale = torch.where(scale > 0, scale, 1.0)
    z, y = (features - mean) / scale, targets - target_mean
    num, width = z.shape
    if num >= width:
        values, vectors = torch.linalg.eigh(z.T @ z / num)
        left, right = vectors, vectors.T @ (z.T @ y) / num
    else:
        values, vectors = torch.linalg.eigh(z @ z.T / num)
        left, right = z.T @ vectors, vectors.T @ y / num
    values = values.clamp(min=0)

    def fitted(strength: float) -> RidgeFit:
        weight = left @ (right / (values + strength)[:, None]) / scale[:, None]
        return RidgeFit(weight, target_mean - mean @ weight, strength, target_mean)

    fits = [fitted(strength) for strength in sorted(strengths, reverse=True)]
    held_out = val[1].double()
    return min(fits, key=lambda fit: float((fit.predict(val[0]) - held_out).square().sum()))
