"""Augmentation policies: RandAugment, TrivialAugment and AugMix, for whole batches, by key."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ssl_toolkit.augment.operations import (
    AUTOCONTRAST,
    BRIGHTNESS,
    COLOUR,
    CONTRAST,
    ENHANCING,
    EQUALIZE,
    GEOMETRIC,
    IDENTITY,
    NUM_OPERATIONS,
    POSTERIZE,
    ROTATE,
    SHARPNESS,
    SHEAR_X,
    SHEAR_Y,
    SOLARIZE,
    TRANSLATE_X,
    TRANSLATE_Y,
    apply,
)
from ssl_toolkit.perf.device_constants import constant
from ssl_toolkit.random import fold_in, gamma, integers, uniform

if TYPE_CHECKING:
    from jaxtyping import Float, Int64


class Steps(NamedTuple):
    """What a policy drew for each image.

    Attributes:
        operations: int64 ``[batch, chains, steps]``, as in `ssl_toolkit.augment.operations`.
        amounts: float32 ``[batch, chains, steps]``.
        weights: float32 ``[batch, 1 + chains]``: of the image itself and of each chain, with sum 1; None for one chain
            that is the result.
    """

    operations: Tensor
    amounts: Tensor
    weights: Tensor | None = None


class Policy(ABC):
    """Base class of policies: operations drawn for each image. To write one, give `draw`."""

    @abstractmethod
    def draw(self, keys: Int64[Tensor, " batch"], side: int) -> Steps:
        """Draws what is done to square views.

        Args:
            keys: int64 ``[batch]``: keys of `ssl_toolkit.random`; they alone decide.
            side: Side of the views in pixels.

        Returns:
            What is done to each.
        """

    def __call__(
        self, images: Float[Tensor, "batch channels height width"], steps: Steps
    ) -> Float[Tensor, "batch channels height width"]:
        """Does it: float images ``[batch, channels, height, width]`` in [0, 1] to such images."""
        chains = steps.operations.shape[1]
        copies = images.repeat_interleave(chains, dim=0)
        changed = apply(copies, steps.operations.flatten(0, 1), steps.amounts.flatten(0, 1))
        if steps.weights is None:
            return changed
        own, others = steps.weights.split([1, chains], dim=1)
        mixed = (changed.unflatten(0, (-1, chains)) * others[:, :, None, None, None]).sum(1)
        return mixed.add_(own[:, :, None, None] * images)

    def __repr__(self) -> str:
        values = ", ".join(f"{name}={value!r}" for name, value in vars(self).items())
        return f"{type(self).__name__}({values})"


class _Ranges(NamedTuple):
    """The amount of each operation at level 1; level 0 changes (nearly) nothing."""

    shear: float
    translate: float  # a fraction of the side
    degrees: float
    factor: float
    bits: tuple[int, int]  # at level 0 and 1


def _amounts(operations: Tensor, levels: Tensor, signs: Tensor, ranges: _Ranges, side: int) -> Tensor:
    """What `ssl_toolkit.augment.operations.apply` takes, for levels in [0, 1] and signs of -1 and 1."""
    # whole pixels, as torchvision moves
    moves = (levels * (ranges.translate * side)).trunc() * signs
    factors = 1 + levels * ranges.factor * signs
    few, many = ranges.bits[1], ranges.bits[0]
    table = {
        SHEAR_X: levels * ranges.shear * signs,
        SHEAR_Y: levels * ranges.shear * signs,
        TRANSLATE_X: moves,
        TRANSLATE_Y: moves,
        ROTATE: levels * ranges.degrees * signs,
        BRIGHTNESS: factors,
        COLOUR: factors,
        CONTRAST: factors,
        SHARPNESS: factors,
        POSTERIZE: (many - levels * (many - few)).round().clamp(min=1),
        SOLARIZE: 1 - levels,
        AUTOCONTRAST: levels,
        EQUALIZE: levels,
        IDENTITY: levels,
    }
    amounts = torch.stack([table[each] for each in range(NUM_OPERATIONS)], dim=-1)
    return amounts.gather(-1, operations.unsqueeze(-1)).squeeze(-1)


def _signs(keys: Tensor, num: int) -> Tensor:
    return 2.0 * integers(fold_in(keys, "sign"), 0, 2, num) - 1


class RandAugment(Policy):
    """RandAugment: some operations, drawn for each image, all of one magnitude (Cubuk et al. 2020).

    arXiv 1909.13719, section 3. Operations and ranges are those of torchvision's ``RandAugment``: identity, shears up
    to 0.3, translations up to 0.45 of the side, rotation up to 30 degrees, brightness, colour, contrast and sharpness
    up to a factor of 1 +- 0.9, posterize down to 4 bits, solarize from 1 down to 0, autocontrast and equalize.

    Args:
        num_ops: How many operations, one after the other, at least 1.
        magnitude: Of all of them, from 0 to 30.
    """

    def __init__(self, num_ops: int = 2, magnitude: float = 9.0) -> None:
        if num_ops < 1:
            raise ValueError(f"RandAugment: num_ops is at least 1, got {num_ops}")
        if not 0 <= magnitude <= 30:
            raise ValueError(f"RandAugment: magnitude is a number from 0 to 30, got {magnitude}")
        self.num_ops = num_ops
        self.magnitude = magnitude

    def draw(self, keys: Int64[Tensor, " batch"], side: int) -> Steps:
        """Operations and signs."""
        operations = integers(fold_in(keys, "operation"), 0, NUM_OPERATIONS, self.num_ops)
        levels = torch.full_like(operations, self.magnitude / 30, dtype=torch.float32)
        ranges = _Ranges(0.3, 150 / 331, 30, 0.9, (8, 4))
        amounts = _amounts(operations, levels, _signs(keys, self.num_ops), ranges, side)
        return Steps(operations[:, None], amounts[:, None])


class TrivialAugment(Policy):
    """TrivialAugment: one operation of a random magnitude for each image; nothing to tune (Müller and Hutter 2021).

    arXiv 2103.10158, algorithm 1, with its "wide" ranges, which are those of torchvision's ``TrivialAugmentWide``: as
    RandAugment, but shears up to 0.99, rotation up to 135 degrees, factors up to 1 +- 0.99, posterize down to 2 bits,
    each magnitude one of 31. Translations are up to 32 pixels of 224, in proportion for other sizes.
    """

    def draw(self, keys: Int64[Tensor, " batch"], side: int) -> Steps:
        """An operation, its level and its sign."""
        operations = integers(fold_in(keys, "operation"), 0, NUM_OPERATIONS, 1)
        levels = integers(fold_in(keys, "level"), 0, 31, 1) / 30
        amounts = _amounts(operations, levels, _signs(keys, 1), _Ranges(0.99, 32 / 224, 135, 0.99, (8, 2)), side)
        return Steps(operations[:, None], amounts[:, None])


class AugMix(Policy):
    """AugMix: a random mixture of an image with chains of operations on it (Hendrycks et al. 2020).

    arXiv 1912.02781, algorithm 1: the chains' weights are drawn from Dirichlet(alpha, ...), that of their mixture
    beside the image itself from Beta(alpha, alpha). At the highest severity, 10: shears up to 0.3, translations up to a
    third of the side, rotation up to 30 degrees, posterize from 4 bits down to 1, solarize from 1 down to 0; in
    proportion below; autocontrast, equalize. The paper's loss between three views is not part of it.

    Args:
        severity: Of the operations, from 1 to 10; each draws its level below it.
        width: Number of chains, at least 1.
        depth: Operations of a chain, at least 1; None draws 1 to 3 for each chain.
        alpha: Of both distributions, above 0.
        enhancing: Brightness, colour, contrast and sharpness, too, which the paper leaves out because its
            benchmark, ImageNet-C, is made with them.
    """

    def __init__(
        self, severity: float = 3.0, width: int = 3, depth: int | None = None, alpha: float = 1.0,
        enhancing: bool = False,
    ) -> None:  # fmt: skip
        if not 1 <= severity <= 10:
            raise ValueError(f"AugMix: severity is a number from 1 to 10, got {severity}")
        if width < 1 or (depth is not None and depth < 1):
            raise ValueError(f"AugMix: width and depth are at least 1, got width={width}, depth={depth}")
        if alpha <= 0:
            raise ValueError(f"AugMix: alpha is above 0, got {alpha}")
        self.severity = severity
        self.width = width
        self.depth = depth
        self.alpha = alpha
        self.enhancing = enhancing

    def draw(self, keys: Int64[Tensor, " batch"], side: int) -> Steps:
        """Chains and weights."""
        chains = fold_in(keys[:, None], torch.arange(self.width, device=keys.device))
        kinds = (*GEOMETRIC, POSTERIZE, SOLARIZE, AUTOCONTRAST, EQUALIZE, *ENHANCING * self.enhancing)
        steps = self.depth or 3
        places = integers(fold_in(chains, "operation"), 0, len(kinds), steps)
        operations = constant(kinds, keys.device, torch.int64)[places]
        levels = uniform(fold_in(chains, "level"), steps, 0.1, self.severity) / 10
        ranges = _Ranges(0.3, 1 / 3, 30, 0.9, (4, 0))
        amounts = _amounts(operations, levels, _signs(chains, steps), ranges, side)
        if self.depth is None:
            depths = integers(fold_in(chains, "depth"), 1, 4).unsqueeze(-1)
            operations = torch.where(torch.arange(3, device=keys.device) < depths, operations, IDENTITY)
        weights = gamma(fold_in(chains, "weight"), self.alpha)
        mixture = gamma(fold_in(keys, "mixture"), self.alpha, 2)
        weights, mixture = (each / each.sum(1, keepdim=True).clamp(min=1e-30) for each in (weights, mixture))
        return Steps(operations, amounts, torch.cat([mixture[:, :1], mixture[:, 1:] * weights], dim=1))
