"""Losses as pure functions, and soft targets."""

from ssl_toolkit.losses.coding_rate import coding_rate, emp_ssl, most_coding_rate
from ssl_toolkit.losses.cross_correlation import barlow_twins, cross_correlation
from ssl_toolkit.losses.dense_info_nce import dense_info_nce, similar_places
from ssl_toolkit.losses.full_precision import full_precision
from ssl_toolkit.losses.info_nce import info_nce
from ssl_toolkit.losses.negative_cosine import negative_cosine
from ssl_toolkit.losses.nt_xent import nt_xent
from ssl_toolkit.losses.offset_regression import offset_moments, offset_regression
from ssl_toolkit.losses.soft_targets import Mixing, SoftTargets, soft_cross_entropy, soften

__all__ = [
    "Mixing",
    "SoftTargets",
    "barlow_twins",
    "coding_rate",
    "cross_correlation",
    "dense_info_nce",
    "emp_ssl",
    "full_precision",
    "info_nce",
    "most_coding_rate",
    "negative_cosine",
    "nt_xent",
    "offset_moments",
    "offset_regression",
    "similar_places",
    "soft_cross_entropy",
    "soften",
]
