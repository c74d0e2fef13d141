"""Every optimizer, schedule and regularizer, found by looking, and the arguments with which tests use it."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from types import ModuleType
from typing import Any

import pytest

from ssl_toolkit import optim, regularization, schedule
from ssl_toolkit.optim import OptimizerSpec
from ssl_toolkit.regularization import Penalty, Regularizer
from ssl_toolkit.schedule import Schedule

# what has no default, and where the default would do nothing in a network as small as this
ARGUMENTS = {
    "L1": {"strength": 0.01},
    "L2": {"strength": 0.01},
    "ElasticNet": {"strength": 0.01},
    "L2SP": {"strength": 1.0},
    "Orthogonality": {"strength": 0.01},
    "FeatureNorm": {"strength": 0.1},
    "VarianceCovariance": {"strength": 0.1},
    "InputNoise": {"std": 0.2},
    "ActivationNoise": {"std": 0.2, "pattern": r"^backbone\.model\.layer2$"},
    "WeightNoise": {"std": 0.2},
    "Dropout": {"probability": 0.2, "pattern": "^backbone$"},
    "SpatialDropout": {"probability": 0.2, "pattern": r"^backbone\.model\.layer2$"},
    "MixUp": {"alpha": 1.0},
    "ManifoldMixUp": {"pattern": r"^backbone\.model\.layer[12]$"},
    "DropBlock": {"probability": 0.2, "pattern": r"^backbone\.model\.layer2$", "block_size": 1},
}


def found_in(package: ModuleType, base: type[Any]) -> list[str]:
    """The names of a package's public classes that derive from another."""
    classes = (getattr(package, name) for name in package.__all__)
    kinds = (each for each in classes if inspect.isclass(each) and issubclass(each, base))
    return [each.__name__ for each in kinds if each not in (base, Penalty)]


OPTIMIZERS = found_in(optim, OptimizerSpec)
SCHEDULES = found_in(schedule, Schedule)
REGULARIZERS = found_in(regularization, Regularizer)
# each is of a kind of which another one is tried in the default suite, as is any that is new
_SIBLINGS = {
    "L1", "L2", "FeatureNorm", "InputNoise", "ActivationNoise", "Dropout", "SpatialDropout", "MixUp", "CutMix",
}  # fmt: skip


def each_regularizer(without: Iterable[str] = ()) -> list[Any]:
    """Arguments of ``pytest.mark.parametrize``: those of which a sibling is in the default suite are slow."""
    names = [name for name in REGULARIZERS if name not in set(without)]
    return [pytest.param(name, marks=[pytest.mark.slow] * (name in _SIBLINGS)) for name in names]
