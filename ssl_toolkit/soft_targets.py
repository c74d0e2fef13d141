"""Kept for `from ssl_toolkit.soft_targets import ...`; see `ssl_toolkit.losses.soft_targets`."""

from ssl_toolkit.losses.soft_targets import Mixing, SoftTargets, soft_cross_entropy, soften

__all__ = ["Mixing", "SoftTargets", "soft_cross_entropy", "soften"]
