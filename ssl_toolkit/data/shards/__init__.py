"""Tar shards: where they are, what is in them, and how they come here."""

from ssl_toolkit.data.shards.source import ShardOptions, ShardSource

__all__ = ["ShardOptions", "ShardSource"]
