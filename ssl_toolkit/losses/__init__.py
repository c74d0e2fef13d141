"""Losses as pure functions, and the soft targets that they share."""

from ssl_toolkit.losses.full_precision import full_precision
from ssl_toolkit.losses.soft_targets import Mixing, SoftTargets, soft_cross_entropy, soften

__all__ = ["Mixing", "SoftTargets", "full_precision", "soft_cross_entropy", "soften"]
