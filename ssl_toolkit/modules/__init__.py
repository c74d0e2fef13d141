"""Networks and parts of networks: the backbone, its normalisation layers, multilayer perceptrons."""

from ssl_toolkit.modules.activation_checkpointing import checkpoint_stages
from ssl_toolkit.modules.backbone import Backbone
from ssl_toolkit.modules.mlp import mlp

__all__ = ["Backbone", "checkpoint_stages", "mlp"]
