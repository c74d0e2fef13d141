"""Regularization against overfitting, for pretext and downstream tasks."""

from ssl_toolkit.regularization.base import Penalty, Regularizer
from ssl_toolkit.regularization.dropout import DropBlock, Dropout, SpatialDropout
from ssl_toolkit.regularization.mixing import CutMix, LabelSmoothing, ManifoldMixUp, MixUp
from ssl_toolkit.regularization.noise import ActivationNoise, GradientNoise, InputNoise, WeightNoise
from ssl_toolkit.regularization.penalties import (
    L1,
    L2,
    L2SP,
    ElasticNet,
    FeatureNorm,
    Orthogonality,
    VarianceCovariance,
)
from ssl_toolkit.regularization.sam import SAM

__all__ = [
    "L1", "L2", "L2SP", "SAM", "ActivationNoise", "CutMix", "DropBlock", "Dropout", "ElasticNet", "FeatureNorm",
    "GradientNoise", "InputNoise", "LabelSmoothing", "ManifoldMixUp", "MixUp", "Orthogonality", "Penalty",
    "Regularizer", "SpatialDropout", "VarianceCovariance", "WeightNoise",
]  # fmt: skip
