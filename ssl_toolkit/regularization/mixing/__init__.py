"""Images mixed with others of their batch, and labels smoothed: soft targets for whatever task has them."""

from ssl_toolkit.regularization.mixing.images import CutMix, MixUp
from ssl_toolkit.regularization.mixing.manifold import ManifoldMixUp
from ssl_toolkit.regularization.mixing.smoothing import LabelSmoothing

__all__ = ["CutMix", "LabelSmoothing", "ManifoldMixUp", "MixUp"]
