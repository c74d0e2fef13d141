"""Losses as pure functions, and soft targets."""

from ssl_toolkit.losses.cross_correlation import barlow_twins, cross_correlation
from ssl_toolkit.losses.full_precision import full_precision
from ssl_toolkit.losses.info_nce import info_nce
from ssl_toolkit.losses.negative_cosine import negative_cosine
from ssl_toolkit.losses.nt_xent import nt_xent
from ssl_toolkit.losses.soft_targets import Mixing, SoftTargets, soft_cross_entropy, soften

__all__ = [
    "Mixing",
    "SoftTargets",
    "barlow_twins",
    "cross_correlation",
    "full_precision",
    "info_nce",
    "negative_cosine",
    "nt_xent",
    "soft_cross_entropy",
    "soften",
]
