"""Learning rate scaling with the batch size."""

from __future__ import annotations

import math
from typing import Literal, get_args

from ssl_toolkit.errors import nearest
from ssl_toolkit.optim.base import OptimizerSpec
from ssl_toolkit.optim.sgd import SGD

LRScaling = Literal["none", "linear", "sqrt"]

# above it ResNet-50 on ImageNet loses accuracy with a linearly scaled rate (Goyal et al. 2017, figure 1)
LARGEST_SGD_BATCH = 8192


def scaled_lr(lr: float, scaling: LRScaling, batch_size: int, reference_batch_size: int) -> float:
    """Scaled learning rate for a batch size.

    Args:
        lr: The rate for the reference batch size, above 0.
        scaling: ``linear``: twice the batch, twice the rate (Goyal et al. 2017, arXiv 1706.02677, section 2.1, for
            SGD); ``sqrt``: its root (Krizhevsky 2014, arXiv 1404.5997, section 5; Malladi et al. 2022, arXiv
            2205.10287, for Adam); ``none``: the same rate.
        batch_size: Of one optimizer step: over all processes and accumulated batches.
        reference_batch_size: The batch size that the rate is for.

    Raises:
        ValueError: If the scaling is none of these, or the reference batch size is less than 1.
    """
    if scaling not in get_args(LRScaling):
        raise ValueError(
            f"lr_scaling is {scaling!r}, expected none, linear or sqrt{nearest(scaling, get_args(LRScaling))}"
        )
    if reference_batch_size < 1:
        raise ValueError(f"reference_batch_size is {reference_batch_size}, expected at least 1")
    ratio = batch_size / reference_batch_size
    return lr * {"none": 1.0, "linear": ratio, "sqrt": math.sqrt(ratio)}[scaling]


def large_batch_remark(spec: OptimizerSpec, batch_size: int) -> str | None:
    """A sentence for a batch that is too large for plain SGD, or None."""
    if not isinstance(spec, SGD) or batch_size <= LARGEST_SGD_BATCH:
        return None
    return (
        f"a batch of {batch_size:,} images is more than scaled SGD is known to bear: above {LARGEST_SGD_BATCH:,} its "
        "accuracy falls on ImageNet (Goyal et al. 2017, figure 1); LARS and LAMB are made for such batches"
    )
