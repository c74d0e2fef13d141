"""Collapse detection, complete and dimensional, in a network's outputs for one batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from ssl_toolkit.evaluation.representation import rank_me, spread
from ssl_toolkit.health.findings import Finding

POINT = "collapse"
DIMENSIONAL = "dimensional collapse"

# of embeddings, on the scale on which 1 is uniform on the sphere; features behind a ReLU lie in one corner of it, and
# those of random weights begin near 0.1
_LEAST_SPREAD = {"embedding": 0.1, "feature": 0.01}
_LEAST_RANK = 0.05
# more tell nothing new, and the time goes with their cube
_MOST_SAMPLES = 256
_FEWEST_SAMPLES = 8
# what is looked at, by the name of the task's module that computes it
_MODULES = {"backbone": "feature", "projector": "embedding"}


class Extent(NamedTuple):
    """Spread and rank of a batch of vectors.

    Attributes:
        spread: `ssl_toolkit.evaluation.spread`.
        rank: `ssl_toolkit.evaluation.rank_me`.
        most: What the rank could be: the number of vectors or their width, whichever is smaller.
    """

    spread: float
    rank: float
    most: int


def extent(vectors: Tensor) -> Extent | None:
    """Measures the first few hundred of the vectors, on the CPU.

    Args:
        vectors: Of shape ``[num, width]``.

    Returns:
        None for too few vectors, or a single coordinate, which tell nothing.
    """
    if len(vectors) < _FEWEST_SAMPLES or vectors.shape[1] < 2:
        return None
    few = vectors[:_MOST_SAMPLES].detach().float().cpu()
    return Extent(spread(few), rank_me(few), min(few.shape))


def judge(name: str, found: Extent, step: int, by_rank: bool = True) -> Finding | None:
    """Judges whether vectors have collapsed: to a point, or to a few of their dimensions. Each hides the other.

    Args:
        name: ``embedding`` or ``feature``.
        found: Of `extent`.
        step: For the sentence.
        by_rank: Whether few dimensions are a fault; classes need no more dimensions than there are classes.
    """
    if found.spread < _LEAST_SPREAD[name]:
        return Finding(
            POINT,
            f"The {name}s have collapsed to a point at step {step:,}: they are nearly the same for all images (spread "
            f"{found.spread:.2g}, where 1 is even and {_LEAST_SPREAD[name]:g} the least that is healthy).",
            "Lower optimizer.lr; for a contrastive task raise batch size or temperature; a task without negatives "
            "needs what keeps its views apart (a stop-gradient, a teacher, a penalty).",
        )
    if by_rank and found.rank < _LEAST_RANK * found.most:
        return Finding(
            DIMENSIONAL,
            f"The {name}s have collapsed to a few dimensions at step {step:,}: their effective rank is "
            f"{found.rank:.2g} of {found.most} (RankMe), less than {100 * _LEAST_RANK:g} %.",
            "Lower optimizer.lr or weight decay, use stronger augmentation or a larger batch, and look for a layer "
            "with few outputs on the way.",
        )
    return None


class Outputs:
    """Outputs of a task's backbone and projector in their last forward pass.

    Args:
        task: Has the modules ``backbone`` and, if it embeds what the backbone computes, ``projector``.
        modules: Those to listen to.
    """

    def __init__(self, task: nn.Module, modules: Sequence[str] = tuple(_MODULES)) -> None:
        self._kept: dict[str, Tensor] = {}
        found = {_MODULES[name]: getattr(task, name, None) for name in modules}
        self._hooks = [
            module.register_forward_hook(self._hook(name))
            for name, module in found.items()
            if isinstance(module, nn.Module)
        ]

    def stop(self) -> None:
        """Listens no longer."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def extents(self) -> dict[str, Extent]:
        """What was computed, measured: by name, ``feature`` and ``embedding``."""
        measured = {name: extent(vectors) for name, vectors in self._kept.items()}
        return {name: each for name, each in measured.items() if each is not None}

    def _hook(self, name: str) -> Any:
        def keep(module: nn.Module, inputs: Any, output: Any) -> None:
            # a backbone that was asked for its map returns both
            output = output[0] if isinstance(output, tuple) else output
            if isinstance(output, Tensor) and output.ndim == 2:
                self._kept[name] = output.detach()

        return keep
