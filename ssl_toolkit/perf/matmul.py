"""Matrix multiplication in float32 on a CPU, by oneDNN."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def onednn_matmul(may_round: bool = False) -> Iterator[None]:
    """Matrix multiplication by oneDNN instead of MKL, in float32 on a CPU: two to four times as fast on one by AMD.

    torch has no other switch for that than the permission to round factors to bfloat16 (and only them: sums stay
    float32). oneDNN makes use of it where the processor has AMX; without AMX nothing is rounded.

    Args:
        may_round: Whether that is acceptable; if not, and there is AMX, MKL goes on.
    """
    if not may_round and torch.cpu._is_amx_tile_supported():
        yield
        return
    settings = torch.backends.mkldnn.matmul  # pyright: ignore[reportAttributeAccessIssue] - made at run time
    before = settings.fp32_precision
    settings.fp32_precision = "bf16"
    try:
        yield
    finally:
        settings.fp32_precision = before
