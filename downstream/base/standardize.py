"""`Standardize`: standardization of features to mean 0 and variance 1."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ssl_toolkit.distributed.collectives import all_reduce_mean
from ssl_toolkit.distributed.ranks import world_size

EPS = 1e-6  # added to the variance


class Standardize(nn.Module):
    """Standardization of each feature by its mean and variance over all training samples so far, of all processes.

    What a BatchNorm without scale and shift does for a linear probe (He et al. 2022, arXiv 2111.06377, appendix A.1),
    without the noise of small batches. Before the first training sample it changes nothing. It passes no gradient on to
    its statistics. Means and variances are merged as by Chan, Golub and LeVeque ("Algorithms for computing the sample
    variance", 1983, equation 2.1).

    Args:
        num_features: Width of the features.
        eps: Added to the variance.
    """

    count: Tensor
    mean: Tensor
    variance: Tensor

    def __init__(self, num_features: int, eps: float = EPS) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(num_features))
        self.register_buffer("variance", torch.ones(num_features))

    def forward(self, features: Tensor) -> Tensor:
        """Standardizes a float tensor of shape ``[batch, num_features]``; in training it counts it first."""
        if self.training:
            self._count(features.detach().float())
        return (features - self.mean) * torch.rsqrt(self.variance + self.eps)

    def _count(self, features: Tensor) -> None:
        # the factor 1 / world_size of the averages falls out of their ratios
        number = all_reduce_mean(features.new_full((), len(features)))
        mean = all_reduce_mean(features.sum(dim=0)) / number
        variance = all_reduce_mean((features - mean).square().sum(dim=0)) / number
        total = self.count + number * world_size()
        weight = 1 - self.count / total
        difference = mean - self.mean
        self.variance.copy_(
            (1 - weight) * self.variance + weight * variance + weight * (1 - weight) * difference.square()
        )
        self.mean.add_(weight * difference)
        self.count.copy_(total)
