"""Kept for `from ssl_toolkit.sharded_checkpoint import save`; see `ssl_toolkit.checkpoint.sharded`."""

from ssl_toolkit.checkpoint.sharded import load, save

__all__ = ["load", "save"]
