"""Label smoothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ssl_toolkit.regularization.base import Regularizer, Result, check_probability
from ssl_toolkit.regularization.mixing.base import check_soft_targets
from ssl_toolkit.step import StepContext


class LabelSmoothing(Regularizer):
    """Label smoothing: spreads a fraction of each target evenly over all classes (Szegedy et al. 2016, arXiv
    1512.00567, section 7).

    Contrastive tasks spread it over all that a view is compared with. Of training only.

    Args:
        share: The fraction that is spread, at least 0 and less than 1 (the paper: 0.1).
    """

    shardable = True

    def __init__(self, share: float = 0.1) -> None:
        self.share = check_probability(share, "share")

    def check(self, task: Any) -> None:
        """Whether the task can smooth."""
        check_soft_targets(self, task)

    def around(self, task: Any, context: StepContext, compute: Callable[[], Result]) -> Result:
        """Computes the loss with smoothed targets."""
        before = context.smoothing
        context.smoothing = 1 - (1 - before) * (1 - self.share)
        try:
            return compute()
        finally:
            context.smoothing = before
