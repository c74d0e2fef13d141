"""Runtime of a run on its machines: FSDP2, preemption, rank failure."""
