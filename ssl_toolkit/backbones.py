"""Kept for `from ssl_toolkit.backbones import Backbone`; see `ssl_toolkit.modules.backbone`."""

from ssl_toolkit.modules.backbone import CNN_FAMILIES, Backbone

__all__ = ["CNN_FAMILIES", "Backbone"]
