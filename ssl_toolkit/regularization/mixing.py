"""Images mixed with others of their batch, and labels smoothed: soft targets for whatever task has them.

Of several mixings a sample gets at most one, and its partner gets the same, so that nothing mixed is mixed again. All
is drawn from the samples' keys: the same whenever a batch is computed again (`SAM`), and after a resume.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ssl_toolkit.random import beta, fold, number, random_bits, uniform
from ssl_toolkit.regularization.base import Regularizer, Result, check_probability, modules
from ssl_toolkit.soft_targets import Mixing


class _Rows(NamedTuple):
    """What the backbone sees in a step, or in one forward pass of it.

    Attributes:
        samples: int64 tensor: the sample of each row.
        partners: int64 tensor: the row that each is mixed with.
    """

    samples: Tensor
    partners: Tensor


class _Mixer(Regularizer):
    """Mixes what the backbone sees of some samples in training, and tells the task."""

    shardable = True

    def __init__(self, alpha: float, probability: float) -> None:
        if alpha <= 0:
            raise ValueError(f"regularizers: alpha is {alpha}, expected a number above 0")
        if not 0 < probability <= 1:
            raise ValueError(f"regularizers: probability is {probability}, expected a number above 0 and at most 1")
        self.alpha = alpha
        self.probability = probability
        self._task: Any = None
        self._keys: Tensor | None = None
        self._mine = torch.empty(0, dtype=torch.bool)
        self._partners = torch.empty(0, dtype=torch.int64)
        self._rows: _Rows | None = None
        self._seen = 0

    @abstractmethod
    def mix(self, rows: Tensor, which: _Rows, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Mixes rows.

        Args:
            rows: Float tensor of shape ``[rows, ...]``.
            which: What they are.
            keys: int64 tensor of shape ``[batch]``, from which each sample's share is drawn.

        Returns:
            The mixed rows, and each sample's share of itself: float tensor of shape ``[batch]``.
        """

    def check(self, task: Any) -> None:
        """Whether the task can mix."""
        _check_soft_targets(self, task)

    def prepare(self, task: Any) -> None:
        """Has what the backbone sees changed."""
        self._task = task
        hook = self._before_backbone
        # it does another thing at each step, of which a compiled backbone must know nothing
        task.backbone.register_forward_pre_hook(torch.compiler.disable(hook) if task.compile_backbone else hook)

    def around(self, task: Any, compute: Callable[[], Result]) -> Result:
        """Draws who is mixed with whom, and computes the loss of it."""
        before = task.mixing
        keys = task.keys(task.training_batch)
        self._keys = fold(keys, type(self).__name__)
        self._mine = self._drawn(task, keys)
        self._partners = _cycle(self._mine, keys)
        self._rows, self._seen = _Rows(*task.mixed_rows(self._partners)), 0
        try:
            return compute()
        finally:
            task.mixing, self._keys, self._rows = before, None, None

    def _drawn(self, task: Any, keys: Tensor) -> Tensor:
        """Which samples this mixing gets: a bool tensor of shape ``[batch]``.

        With several mixings whose probabilities sum to more than 1 they are divided by the sum.
        """
        mixers = [each for each in task.regularizers if isinstance(each, _Mixer)]
        total = max(1.0, sum(each.probability for each in mixers))
        start = sum(each.probability for each in mixers[: mixers.index(self)]) / total
        numbers = uniform(fold(keys, "which mixing"))
        return (numbers >= start) & (numbers < start + self.probability / total)

    def _before_backbone(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        rows = self._next_rows(len(inputs[0]))
        return None if rows is None else (self._mixed(inputs[0], rows), *inputs[1:])

    def _next_rows(self, num: int) -> _Rows | None:
        """The rows of a forward pass; None outside a training step."""
        if self._rows is None:
            return None
        # from the start again where a batch is computed a second time
        start = self._seen % len(self._rows.samples)
        self._seen = start + num
        assert self._seen <= len(self._rows.samples), "the task's mixed_rows tells of fewer rows than there are"
        return _Rows(self._rows.samples[start : self._seen], self._rows.partners[start : self._seen] - start)

    def _mixed(self, rows: Tensor, which: _Rows) -> Tensor:
        """The rows mixed, which the task now knows of."""
        assert self._keys is not None
        mixed, shares = self.mix(rows, which, self._keys)
        others = self._task.mixing or Mixing(torch.arange(len(shares), device=shares.device), torch.ones_like(shares))
        self._task.mixing = Mixing(
            torch.where(self._mine, self._partners, others.partners), torch.where(self._mine, shares, others.shares)
        )
        return mixed


class MixUp(_Mixer):
    """Weighted means of two images, with the same means of their targets (Zhang et al. 2018, arXiv 1710.09412, eq. 1).

    What is mixed: images, all frames of a sequence, all patches of an image, or the first of two views; contrastive
    tasks become i-Mix (Lee et al. 2021, arXiv 2010.08887). Of training only: the loss in evaluation is the plain one.

    Args:
        alpha: Each sample's share of itself is drawn from Beta(alpha, alpha), alpha above 0: the larger, the more
            equal the two (the paper: 0.1 to 0.4 on ImageNet, 1 on CIFAR-10; i-Mix: 1).
        probability: Of a sample to be mixed, above 0 and at most 1. Several mixings share the samples among them.
    """

    def __init__(self, alpha: float = 0.2, probability: float = 1.0) -> None:
        super().__init__(alpha, probability)

    def mix(self, rows: Tensor, which: _Rows, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Weighted means."""
        shares = beta(keys, self.alpha)
        of_row = shares[which.samples].to(rows.dtype).view(-1, *[1] * (rows.ndim - 1))
        return rows[which.partners].lerp(rows, of_row), shares


class CutMix(_Mixer):
    """A box of one image is replaced by that of another (Yun et al. 2019, arXiv 1905.04899, equations 1 and 2).

    The share of the targets is exactly the area that is left. What is mixed, and in which tasks, is as for `MixUp`.

    Args:
        alpha: The share of the area that is kept is drawn from Beta(alpha, alpha), alpha above 0 (the paper: 1), before
            the box is clipped to the image.
        probability: Of a sample to be mixed, above 0 and at most 1. Several mixings share the samples among them.
    """

    def __init__(self, alpha: float = 1.0, probability: float = 1.0) -> None:
        super().__init__(alpha, probability)

    def mix(self, rows: Tensor, which: _Rows, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Pasted boxes."""
        side = (1 - beta(keys, self.alpha)).sqrt()
        centres = uniform(fold(keys, "centre"), 2)
        inside = [
            _span(side, centre, length) for centre, length in zip(centres.unbind(1), rows.shape[-2:], strict=True)
        ]
        box = inside[0][:, :, None] & inside[1][:, None, :]
        mixed = torch.where(box[which.samples][:, None], rows[which.partners], rows)
        return mixed, 1 - box.float().mean(dim=(1, 2))


class ManifoldMixUp(MixUp):
    """`MixUp` of what a layer makes of the images (Verma et al. 2019, arXiv 1806.05236, section 2).

    At each step one layer is drawn; the images themselves are mixed by a `MixUp` beside it, if they are to be.

    Args:
        pattern: Regular expression, searched in the names of the task's modules; one of the backbone's modules that
            match is drawn at each step, and its output mixed (``^backbone.model.layer[12]$``, say).
        alpha: Each sample's share of itself is drawn from Beta(alpha, alpha), alpha above 0 (the paper: 2).
        probability: Of a sample to be mixed, above 0 and at most 1. Several mixings share the samples among them.
    """

    def __init__(self, pattern: str, alpha: float = 2.0, probability: float = 1.0) -> None:
        super().__init__(alpha, probability)
        self.pattern = pattern
        self._layer: nn.Module | None = None
        # of a forward pass whose layer is still to come
        self._pending: _Rows | None = None

    def check(self, task: Any) -> None:
        """Whether the task can mix there."""
        super().check(task)
        if task.compile_backbone:
            raise ValueError("regularizers: ManifoldMixUp does not work within a compiled backbone; set compile: false")
        names = {module: name for name, module in task.named_modules()}
        for module in modules(task, self.pattern):
            name = names[module]
            if name.partition(".")[0] != "backbone":
                raise ValueError(
                    f"regularizers: ManifoldMixUp's pattern {self.pattern!r} matches {name}, expected modules of the "
                    "backbone; let it begin with ^backbone"
                )
            stages = [f"backbone.model.{stage}." for stage in task.backbone.stages]
            if task.gradient_checkpointing and name.startswith(tuple(stages)):
                raise ValueError(
                    f"regularizers: ManifoldMixUp's pattern {self.pattern!r} matches {name}, which "
                    "gradient_checkpointing computes twice; expected whole stages, such as ^backbone.model.layer2$"
                )

    def prepare(self, task: Any) -> None:
        """Has the outputs changed."""
        super().prepare(task)
        self._layers = modules(task, self.pattern)
        for layer in self._layers:
            layer.register_forward_hook(self._after_layer)

    def around(self, task: Any, compute: Callable[[], Result]) -> Result:
        """Draws the layer, too."""
        drawn = number("manifold mixup", torch.initial_seed())  # the step's
        self._layer = self._layers[drawn % len(self._layers)]
        try:
            result = super().around(task, compute)
            if self._pending is not None:
                name = next(name for name, module in task.named_modules() if module is self._layer)
                raise ValueError(
                    f"regularizers: ManifoldMixUp's pattern {self.pattern!r} matches {name}, which the network does "
                    "not use; choose another pattern"
                )
            return result
        finally:
            self._layer = self._pending = None

    def _before_backbone(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._pending = self._next_rows(len(inputs[0]))

    def _after_layer(self, module: nn.Module, inputs: Any, output: Any) -> Tensor | None:
        if module is not self._layer or self._pending is None:
            return None
        rows, self._pending = self._pending, None
        if not isinstance(output, Tensor) or len(output) != len(rows.samples):
            raise ValueError(
                f"regularizers: ManifoldMixUp's pattern {self.pattern!r} matches a {type(module).__name__}, whose "
                "output is not a tensor with a row for each image; choose another pattern"
            )
        return self._mixed(output, rows)


class LabelSmoothing(Regularizer):
    """Spreads a share of each target evenly over all classes (Szegedy et al. 2016, arXiv 1512.00567, section 7).

    Contrastive tasks spread it over all that a view is compared with. Of training only.

    Args:
        share: What is spread, at least 0 and less than 1 (the paper: 0.1).
    """

    shardable = True

    def __init__(self, share: float = 0.1) -> None:
        self.share = check_probability(share, "share")

    def check(self, task: Any) -> None:
        """Whether the task can smooth."""
        _check_soft_targets(self, task)

    def around(self, task: Any, compute: Callable[[], Result]) -> Result:
        """Computes the loss with smoothed targets."""
        before = task.smoothing
        task.smoothing = 1 - (1 - before) * (1 - self.share)
        try:
            return compute()
        finally:
            task.smoothing = before


def _check_soft_targets(regularizer: Regularizer, task: Any) -> None:
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
    bits = random_bits(fold(keys, "partner"), 1).squeeze(-1) >> 1
    # the marked ones first; a count, so that nothing waits for a GPU
    order = torch.where(mine, bits, torch.iinfo(torch.int64).max).argsort()
    after = torch.where(places + 1 < mine.sum(), places + 1, 0)
    partners = torch.empty_like(places).scatter(0, order, order[after])
    return torch.where(mine, partners, places)


def _span(side: Tensor, centre: Tensor, length: int) -> Tensor:
    """Which pixels of a row lie within a box: bool tensor of shape ``[batch, length]``.

    Args:
        side: float32 tensor of shape ``[batch]``: the box's side as a share of the length.
        centre: float32 tensor of shape ``[batch]``: its centre, likewise.
        length: Of the row, in pixels.
    """
    cut = (side * length).long()
    start = (centre * length).long() - cut // 2
    pixels = torch.arange(length, device=side.device)
    return (pixels >= start[:, None]) & (pixels < (start + cut)[:, None])
