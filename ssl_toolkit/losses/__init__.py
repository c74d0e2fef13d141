"""Losses as pure functions, and soft targets."""

from ssl_toolkit.losses.coding_rate import coding_rate, emp_ssl, most_coding_rate
from ssl_toolkit.losses.coral import coral, coral_probabilities
from ssl_toolkit.losses.cross_correlation import barlow_twins, cross_correlation
from ssl_toolkit.losses.decoupled import dcl
from ssl_toolkit.losses.dense_info_nce import dense_info_nce, similar_places
from ssl_toolkit.losses.distillation import entropy, soft_assignment_loss
from ssl_toolkit.losses.full_precision import full_precision
from ssl_toolkit.losses.imbalance import class_weights, focal_cross_entropy, log_prior
from ssl_toolkit.losses.info_nce import info_nce, least_info_nce
from ssl_toolkit.losses.masked_reconstruction import masked_reconstruction, normalized_patches
from ssl_toolkit.losses.multi_label import asymmetric_loss, binary_cross_entropy
from ssl_toolkit.losses.negative_cosine import negative_cosine, symmetric_cosine
from ssl_toolkit.losses.nt_xent import nt_xent
from ssl_toolkit.losses.offset_regression import offset_moments, offset_regression
from ssl_toolkit.losses.sinkhorn import sinkhorn
from ssl_toolkit.losses.soft_targets import Mixing, SoftTargets, soft_cross_entropy, soften
from ssl_toolkit.losses.supcon import supcon
from ssl_toolkit.losses.vicreg import invariance, spread
from ssl_toolkit.losses.whitening import whiten

__all__ = [
    "Mixing",
    "SoftTargets",
    "asymmetric_loss",
    "barlow_twins",
    "binary_cross_entropy",
    "class_weights",
    "coding_rate",
    "coral",
    "coral_probabilities",
    "cross_correlation",
    "dcl",
    "dense_info_nce",
    "emp_ssl",
    "entropy",
    "focal_cross_entropy",
    "full_precision",
    "info_nce",
    "invariance",
    "least_info_nce",
    "log_prior",
    "masked_reconstruction",
    "most_coding_rate",
    "negative_cosine",
    "normalized_patches",
    "nt_xent",
    "offset_moments",
    "offset_regression",
    "similar_places",
    "sinkhorn",
    "soft_assignment_loss",
    "soft_cross_entropy",
    "soften",
    "spread",
    "supcon",
    "symmetric_cosine",
    "whiten",
]
