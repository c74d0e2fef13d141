"""Checkpoints: whole or sharded, checked on loading, tensors and plain data only."""

from ssl_toolkit.checkpoint.io import AtomicCheckpointIO, read_checkpoint

__all__ = ["AtomicCheckpointIO", "read_checkpoint"]
