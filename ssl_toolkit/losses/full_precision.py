"""Full precision for losses: float32 at least, also under autocast."""

from __future__ import annotations

import torch
from torch import Tensor


def full_precision(x: Tensor) -> Tensor:
    """At least float32: what autocast made half as precise becomes float32, float64 stays."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
