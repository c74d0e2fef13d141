"""Initialisations of chosen parameters, shared by pretext and downstream tasks."""

from ssl_toolkit.init.base import Initializer, check_covered
from ssl_toolkit.init.scaled import Identity, Kaiming, LeCun, Orthogonal, Sparse, Xavier, ZeroGamma
from ssl_toolkit.init.values import Constant, Keep, Normal, TruncatedNormal, Uniform, Zeros

__all__ = [
    "Constant", "Identity", "Initializer", "Kaiming", "Keep", "LeCun", "Normal", "Orthogonal", "Sparse",
    "TruncatedNormal", "Uniform", "Xavier", "ZeroGamma", "Zeros", "check_covered",
]  # fmt: skip
