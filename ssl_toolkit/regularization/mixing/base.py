"""`Mixer`: the base class of mixings, which draws the partners and tells the task.

Of several mixings a sample gets at most one, and its partner gets the same, so that nothing mixed is mixed again. All
is drawn from the samples' keys: the same whenever a batch is computed again (`SAM`), and after a resume.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ssl_toolkit.losses.soft_targets import Mixing
from ssl_toolkit.random import fold_in, random_bits, uniform
from ssl_toolkit.regularization.base import Regularizer, Result
from ssl_toolkit.step import StepContext


class Rows(NamedTuple):
    """Rows that the backbone sees in a step, or in one forward pass of it.

    Attributes:
        samples: int64 tensor: the sample of each row.
        partners: int64 tensor: the row that each is mixed with.
    """

    samples: Tensor
    partners: Tensor


class Mixer(Regularizer):
    """Base class of mixings: mixes what the backbone sees of some samples in training, and tells the task.

    Args:
        alpha: Parameter of the Beta distribution of the weights, above 0.
        probability: Of a sample to be mixed, above 0 and at most 1.
    """

    shardable = True

    def __init__(self, alpha: float, probability: float) -> None:
        if alpha <= 0:
            raise ValueError(f"regularizers: alpha is {alpha}, expected a number above 0")
        if not 0 < probability <= 1:
            raise ValueError(f"regularizers: probability is {probability}, expected a number above 0 and at most 1")
        self.alpha = alpha
        self.probability = probability
        self._context = StepContext()
        self._keys: Tensor | None = None
        self._mine = torch.empty(0, dtype=torch.bool)
        self._partners = torch.empty(0, dtype=torch.int64)
        self._rows: Rows | None = None
        self._seen = 0

    @abstractmethod
    def mix(self, rows: Tensor, which: Rows, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Mixes rows.

        Args:
            rows: Float tensor of shape ``[rows, ...]``.
            which: What they are.
            keys: int64 tensor of shape ``[batch]``, from which each sample's weight is drawn.

        Returns:
            The mixed rows, and each sample's own weight: float tensor of shape ``[batch]``.
        """

    def check(self, task: Any) -> None:
        """Whether the task can mix."""
        check_soft_targets(self, task)

    def prepare(self, task: Any) -> None:
        """Has what the backbone sees changed."""
        hook = self.before_backbone
        # it does another thing at each step, of which a compiled backbone must know nothing
        task.backbone.register_forward_pre_hook(torch.compiler.disable(hook) if task.compile_backbone else hook)

    def around(self, task: Any, context: StepContext, compute: Callable[[], Result]) -> Result:
        """Draws who is mixed with whom, and computes the loss of it."""
        before, self._context = context.mixing, context
        keys = task.keys(context.batch)
        self._keys = fold_in(keys, type(self).__name__)
        self._mine = self._drawn(task, keys)
        self._partners = _cycle(self._mine, keys)
        self._rows, self._seen = Rows(*task.mixed_rows(context.batch, self._partners)), 0
        try:
            return compute()
        finally:
            context.mixing, self._context = before, StepContext()
            self._keys = self._rows = None

    def _drawn(self, task: Any, keys: Tensor) -> Tensor:
        """Which samples this mixing gets: a bool tensor of shape ``[batch]``.

        With several mixings whose probabilities sum to more than 1 they are divided by the sum.
        """
        mixers = [each for each in task.regularizers if isinstance(each, Mixer)]
        total = max(1.0, sum(each.probability for each in mixers))
        start = sum(each.probability for each in mixers[: mixers.index(self)]) / total
        numbers = uniform(fold_in(keys, "which mixing"))
        return (numbers >= start) & (numbers < start + self.probability / total)

    def before_backbone(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        """Mixes the images that the backbone is given."""
        rows = self.next_rows(len(inputs[0]))
        return None if rows is None else (self.mixed(inputs[0], rows), *inputs[1:])

    def next_rows(self, num: int) -> Rows | None:
        """The rows of a forward pass; None outside a training step."""
        if self._rows is None:
            return None
        # from the start again where a batch is computed a second time
        start = self._seen % len(self._rows.samples)
        self._seen = start + num
        assert self._seen <= len(self._rows.samples), "the task's mixed_rows tells of fewer rows than there are"
        return Rows(self._rows.samples[start : self._seen], self._rows.partners[start : self._seen] - start)

    def mixed(self, rows: Tensor, which: Rows) -> Tensor:
        """The rows mixed, which the loss now knows of."""
        assert self._keys is not None
        mixed, weights = self.mix(rows, which, self._keys)
        places = torch.arange(len(rows), device=weights.device)
        # of several forward passes that one counts in which a sample is mixed: others may see views of another size
        changes = (which.partners != places).to(weights.dtype)
        here = torch.zeros_like(weights).index_add(0, which.samples, changes) > 0
        others = self._context.mixing or Mixing(places[: len(weights)], torch.ones_like(weights))
        self._context.mixing = Mixing(
            torch.where(here, self._partners, others.partners), torch.where(here, weights, others.weights)
        )
        return mixed


def check_soft_targets(regularizer: Regularizer, task: Any) -> None:
    """Raises a ValueError if the task's loss knows no soft targets."""
    if not task.takes_soft_targets:
        raise ValueError(
            f"regularizers: {type(regularizer).__name__} needs a task with soft targets, but the loss of "
            f"{type(task).__name__} knows none; leave it out"
        )


def _cycle(mine: Tensor, keys: Tensor) -> Tensor:
    """Partners in a random circle of the samples that are marked; all others are their own.

    Args:
        mine: bool tensor of shape ``[batch]``.
        keys: int64 tensor of shape ``[batch]``.

    Returns:
        int64 tensor of shape ``[batch]``, a permutation. No marked sample is its own partner, unless it is alone.
    """
    places = torch.arange(len(mine), device=mine.device)
    bits = random_bits(fold_in(keys, "partner"), 1).squeeze(-1) >> 1
    # the marked ones first; a count, so that nothing waits for a GPU
    order = torch.where(mine, bits, torch.iinfo(torch.int64).max).argsort()
    after = torch.where(places + 1 < mine.sum(), places + 1, 0)
    partners = torch.empty_like(places).scatter(0, order, order[after])
    return torch.where(mine, partners, places)
