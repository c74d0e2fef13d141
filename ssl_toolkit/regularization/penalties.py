"""Penalties on weights and on features, added to the loss of any task."""

from __future__ import annotations

from abc import ABC
from typing import Any

import torch
from torch import Tensor, nn

from ssl_toolkit.distributed.collectives import gather_uneven
from ssl_toolkit.regularization.base import Penalty, weights


class L1(Penalty):
    """L1 penalty: sum of the absolute values of weights, which drives small ones to zero (Tibshirani 1996, equation 1).

    Args:
        strength: Factor on the sum, 0 or more.
        pattern: Regular expression, searched in the names of the parameters; biases and other parameters of one
            dimension are never penalised.
    """

    def __init__(self, strength: float, pattern: str = "") -> None:
        super().__init__(strength)
        self.pattern = pattern

    def value(self, task: nn.Module, features: Tensor) -> Tensor:
        """The sum over the trainable weights that match."""
        return torch.stack([weight.abs().sum() for weight in weights(task, self.pattern).values()]).sum()


class L2(Penalty):
    """L2 penalty: half of the sum of the squares of weights, whose gradient is the weight (Hoerl and Kennard 1970;
    Hinton 1987).

    With plain SGD it is the optimizer's ``weight_decay``; with Adam and its kin it is not (Loshchilov and Hutter 2019,
    arXiv 1711.05101, section 2).

    Args:
        strength: Factor on it, 0 or more.
        pattern: Regular expression, searched in the names of the parameters; biases and other parameters of one
            dimension are never penalised.
    """

    def __init__(self, strength: float, pattern: str = "") -> None:
        super().__init__(strength)
        self.pattern = pattern

    def value(self, task: nn.Module, features: Tensor) -> Tensor:
        """Half of the sum over the trainable weights that match."""
        return torch.stack([weight.square().sum() for weight in weights(task, self.pattern).values()]).sum() / 2


class ElasticNet(Penalty):
    """Elastic net: L1 and L2 together, which keeps or removes equivalent weights in groups (Zou and Hastie 2005,
    equation 3).

    Args:
        strength: Factor on the whole, 0 or more.
        l1_share: The weight of L1, 0 to 1; the rest is that of L2.
        pattern: Regular expression, searched in the names of the parameters; biases and other parameters of one
            dimension are never penalised.
    """

    def __init__(self, strength: float, l1_share: float = 0.5, pattern: str = "") -> None:
        super().__init__(strength)
        if not 0 <= l1_share <= 1:
            raise ValueError(f"regularizers: l1_share is {l1_share}, expected 0 to 1")
        self.l1_share = l1_share
        self.parts = L1(1.0, pattern), L2(1.0, pattern)

    def value(self, task: nn.Module, features: Tensor) -> Tensor:
        """The mean of both, weighted."""
        l1, l2 = (part.value(task, features) for part in self.parts)
        return self.l1_share * l1 + (1 - self.l1_share) * l2


class L2SP(Penalty):
    """L2-SP penalty: keeps weights near those that the training starts from, the pretrained ones.

    Li, Grandvalet, Davoine 2018, arXiv 1802.01483, equation 3; to the head, which starts from nothing, they give an
    separate `L2` (equation 4).

    Args:
        strength: Factor on half of the squared distance, 0 or more.
        pattern: Regular expression, searched in the names of the parameters; biases and other parameters of one
            dimension are never penalised.
    """

    def __init__(self, strength: float, pattern: str = "^backbone") -> None:
        super().__init__(strength)
        self.pattern = pattern
        self._start: dict[str, Tensor] = {}

    def prepare(self, task: Any) -> None:
        """Remembers the weights."""
        self._start = {name: weight.detach().clone() for name, weight in weights(task, self.pattern).items()}

    def value(self, task: nn.Module, features: Tensor) -> Tensor:
        """Half of the squared distance from the start."""
        distances = []
        for name, weight in weights(task, self.pattern).items():
            self._start[name] = self._start[name].to(weight.device)
            distances.append((weight - self._start[name]).square().sum())
        return torch.stack(distances).sum() / 2


class Orthogonality(Penalty):
    """Orthogonality penalty: the squared distance of W W^T from the identity, which keeps units different.

    Bansal, Chen, Wang 2018, arXiv 1810.09102, section 3.1 ("soft orthogonality"). A convolution's kernel is a matrix
    with a row for each output; of a matrix with more rows than columns it is the columns.

    Args:
        strength: Factor on the sum over the layers, 0 or more.
        pattern: Regular expression, searched in the names of the parameters.
    """

    def __init__(self, strength: float, pattern: str = "") -> None:
        super().__init__(strength)
        self.pattern = pattern

    def value(self, task: nn.Module, features: Tensor) -> Tensor:
        """The sum over the layers that match."""
        distances = []
        for weight in weights(task, self.pattern).values():
            rows = weight.flatten(1)
            rows = rows if len(rows) <= rows.shape[1] else rows.T
            distances.append((rows @ rows.T - torch.eye(len(rows), device=rows.device)).square().sum())
        return torch.stack(distances).sum()


class _OfFeatures(Penalty, ABC):
    """A penalty on the features that the backbone gives."""

    def check(self, task: Any) -> None:
        """Refuses a backbone that learns nothing, so that the penalty would be a constant."""
        if not any(parameter.requires_grad for parameter in task.backbone.parameters()):
            raise ValueError(
                f"regularizers: {type(self).__name__} changes what the backbone learns, but all of it is "
                "frozen; leave it out"
            )


class FeatureNorm(_OfFeatures):
    """Feature norm penalty: mean squared length of the features, which keeps their scale in bounds.

    Args:
        strength: Factor on the mean, 0 or more.
    """

    shardable = True

    def value(self, task: nn.Module, features: Tensor) -> Tensor:
        """The mean over the batch."""
        return features.square().sum(dim=-1).mean()


class VarianceCovariance(_OfFeatures):
    """Variance and covariance penalty against collapse: each feature varies, and no two vary together.

    The second and third term of VICReg (Bardes, Ponce, LeCun 2022, arXiv 2105.04906, equations 1 to 4), over the
    batches of all processes.

    Args:
        strength: Factor on the sum of both, 0 or more.
        covariance: Factor on the covariance's term within the sum, 0 or more (the paper: 1/25).
        least_std: The standard deviation below which a feature is penalised.
    """

    shardable = True

    def __init__(self, strength: float, covariance: float = 0.04, least_std: float = 1.0) -> None:
        super().__init__(strength)
        if covariance < 0 or least_std <= 0:
            raise ValueError(
                f"regularizers: covariance is {covariance} and least_std {least_std}, expected 0 or more and above 0"
            )
        self.covariance = covariance
        self.least_std = least_std

    def value(self, task: nn.Module, features: Tensor) -> Tensor:
        """The sum of both terms."""
        features, _ = gather_uneven(features)
        centred = features - features.mean(dim=0)
        covariance = centred.T @ centred / max(1, len(features) - 1)
        variance = covariance.diagonal()
        too_little = (self.least_std - (variance + 1e-4).sqrt()).relu().mean()
        together = (covariance.square().sum() - variance.square().sum()) / features.shape[1]
        return too_little + self.covariance * together
