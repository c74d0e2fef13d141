"""MixUp, CutMix, manifold MixUp and label smoothing, for tasks with soft targets."""

from ssl_toolkit.regularization.mixing.images import CutMix, MixUp
from ssl_toolkit.regularization.mixing.manifold import ManifoldMixUp
from ssl_toolkit.regularization.mixing.smoothing import LabelSmoothing

__all__ = ["CutMix", "LabelSmoothing", "ManifoldMixUp", "MixUp"]
