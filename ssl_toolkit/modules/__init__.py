"""Networks and parts of networks: the backbone, its normalisation layers, projectors, EMA teachers, feature queues."""

from ssl_toolkit.modules.activation_checkpointing import checkpoint_stages
from ssl_toolkit.modules.backbone import Backbone
from ssl_toolkit.modules.ema import EMATeacher
from ssl_toolkit.modules.mlp import mlp
from ssl_toolkit.modules.queue import FeatureQueue

__all__ = ["Backbone", "EMATeacher", "FeatureQueue", "checkpoint_stages", "mlp"]
