"""Kept for `from ssl_toolkit.backbones import Backbone`; see `ssl_toolkit.modules.backbone`."""

from ssl_toolkit.modules.backbone import Backbone
from ssl_toolkit.modules.timm_network import CNN_FAMILIES

__all__ = ["CNN_FAMILIES", "Backbone"]
