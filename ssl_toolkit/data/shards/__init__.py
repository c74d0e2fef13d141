"""Tar shards: their addresses, index, download and cache."""

from ssl_toolkit.data.shards.source import ShardOptions, ShardSource

__all__ = ["ShardOptions", "ShardSource"]
