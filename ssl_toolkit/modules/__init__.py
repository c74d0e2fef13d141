"""Networks and parts of networks: the backbone, its norms, projectors, EMA teachers, feature queues, prototypes."""

from ssl_toolkit.modules.activation_checkpointing import checkpoint_stages
from ssl_toolkit.modules.backbone import Backbone
from ssl_toolkit.modules.ema import EMATeacher
from ssl_toolkit.modules.light_decoder import LightDecoder
from ssl_toolkit.modules.mlp import mlp
from ssl_toolkit.modules.prototypes import Prototypes
from ssl_toolkit.modules.queue import FeatureQueue

__all__ = ["Backbone", "EMATeacher", "FeatureQueue", "LightDecoder", "Prototypes", "checkpoint_stages", "mlp"]
