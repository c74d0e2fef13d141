"""The verb ``quickstart``."""

from ssl_toolkit.quickstart import quickstart

__all__ = ["quickstart"]
