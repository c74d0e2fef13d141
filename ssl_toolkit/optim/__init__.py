"""Optimizers as components of a configuration, and the parameter groups they are given."""

from ssl_toolkit.optim.groups import parameter_groups
from ssl_toolkit.optim.optimizers import LARS, SGD, Adam, AdamW, OptimizerSpec

__all__ = ["LARS", "SGD", "Adam", "AdamW", "OptimizerSpec", "parameter_groups"]
