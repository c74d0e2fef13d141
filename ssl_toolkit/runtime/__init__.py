"""What keeps a run alive on its machines: FSDP2, preemption, ranks that fail."""
