"""Optimizers as components of a configuration, and the parameter groups they are given."""

from ssl_toolkit.optim.adagrad import Adadelta, Adagrad, RMSprop
from ssl_toolkit.optim.adam import LAMB, Adam, AdamP, AdamW, NAdam, RAdam
from ssl_toolkit.optim.base import OptimizerSpec, match_layout
from ssl_toolkit.optim.groups import ParameterRule, check_rules, freeze, parameter_groups
from ssl_toolkit.optim.muon import Muon
from ssl_toolkit.optim.scaling import LRScaling, large_batch_remark, scaled_lr
from ssl_toolkit.optim.sgd import LARS, SGD, SGDP, Lion
from ssl_toolkit.optim.state import check_state

__all__ = [
    "LAMB", "LARS", "SGD", "SGDP", "Adadelta", "Adagrad", "Adam", "AdamP", "AdamW", "LRScaling", "Lion", "Muon",
    "NAdam", "OptimizerSpec", "ParameterRule", "RAdam", "RMSprop", "check_rules", "check_state", "freeze",
    "large_batch_remark", "match_layout", "parameter_groups", "scaled_lr",
]  # fmt: skip
