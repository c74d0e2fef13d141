"""Random numbers as a pure function of keys.

Every random choice about a sample is drawn from a hash of ``(seed, epoch, index, view, stream)``, never from the state
of a generator. So nothing depends on the number of workers or processes, or on where a run was interrupted, and a
whole batch is drawn at once, on any device, with the same bits.

The hash is the output function of SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators",
OOPSLA 2014, figure 17), used as a counter-based generator in the sense of Salmon et al. ("Parallel random numbers: as
easy as 1, 2, 3", SC 2011).

    keys = sample_keys(seed=0, epoch=3, indices=batch.indices)     # one 64-bit key for each sample
    flip = uniform(fold_in(keys, "flip")) < 0.5                    # each choice has its own stream
    box = uniform(fold_in(keys, "crop"), 4)                        # four numbers a sample
    zoom, turn = uniform(streams(keys, "zoom", "turn")).unbind(-1)   # one number of each of two streams
"""

from __future__ import annotations

import functools
import math
import zlib

import torch
from torch import Tensor

from ssl_toolkit.perf.device_constants import constant


def _signed(value: int) -> int:
    """The int64 with the bits of an unsigned 64-bit integer (torch has no arithmetic on uint64)."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value


_UNSIGNED = (1 << 64) - 1
_GOLDEN = _signed(0x9E3779B97F4A7C15)
_MIX_1 = _signed(0xBF58476D1CE4E5B9)
_MIX_2 = _signed(0x94D049BB133111EB)


def _shift_right(bits: Tensor, places: int) -> Tensor:
    """Logical shift: torch's own ``>>`` copies the sign bit of an int64."""
    return (bits >> places) & ((1 << (64 - places)) - 1)


def _mix(bits: Tensor) -> Tensor:
    bits = (bits ^ _shift_right(bits, 30)) * _MIX_1
    bits = (bits ^ _shift_right(bits, 27)) * _MIX_2
    return bits ^ _shift_right(bits, 31)


def _mix_one(bits: int) -> int:
    bits = ((bits ^ (bits >> 30)) * _MIX_1) & _UNSIGNED
    bits = ((bits ^ (bits >> 27)) * _MIX_2) & _UNSIGNED
    return bits ^ (bits >> 31)


def fold_in(keys: Tensor, label: int | str | Tensor) -> Tensor:
    """New keys for a purpose, one for each key: independent of the old keys and of those of other labels.

    It does what ``jax.random.fold_in`` does, for a whole batch of keys.

    Args:
        keys: int64 tensor of any shape.
        label: What the new keys are for: the name of a stream ("crop"), a number (of a view, say), or an int64 tensor
            that broadcasts against ``keys``.

    Returns:
        int64 tensor of the broadcast shape.
    """
    if isinstance(label, str):
        label = _number_of(label)
    if isinstance(label, int):
        return _mix(_mix(keys + _GOLDEN) ^ _signed((label + 1) * 0xD1342543DE82EF95))
    return _mix(_mix(keys + _GOLDEN) ^ ((label + 1) * _signed(0xD1342543DE82EF95)))


fold = fold_in  # its name before it took that of JAX; tasks outside this package import it


def streams(keys: Tensor, *names: str) -> Tensor:
    """The keys of several streams at once, which saves most of the time where each draws little.

    Args:
        keys: int64 tensor of any shape.
        *names: Of the streams.

    Returns:
        int64 tensor of shape ``[*keys.shape, len(names)]``; the n-th key is ``fold_in(keys, names[n])``.
    """
    return fold_in(keys.unsqueeze(-1), constant(tuple(map(_number_of, names)), keys.device, torch.int64))


def _number_of(name: str) -> int:
    return zlib.crc32(name.encode())


def sample_keys(seed: int, epoch: int, indices: Tensor, repeats: Tensor | None = None) -> Tensor:
    """The keys of samples in an epoch.

    Args:
        seed: The run's seed.
        epoch: Counted from 0.
        indices: int64 tensor of shape ``[batch]``: places in the source.
        repeats: int64 tensor of shape ``[batch]``: how often each has come before in the epoch; None for never.

    Returns:
        int64 tensor of shape ``[batch]``.
    """
    base = torch.full_like(indices, _signed(seed * 2 + 1))
    keys = fold_in(fold_in(base, epoch), indices)
    return keys if repeats is None else torch.where(repeats > 0, fold_in(keys, repeats), keys)


def random_bits(keys: Tensor, num: int) -> Tensor:
    """``num`` random 64-bit integers for each key: int64 tensor of shape ``[*keys.shape, num]``."""
    counter = torch.arange(1, num + 1, device=keys.device, dtype=torch.int64) * _GOLDEN
    return _mix(_mix(keys).unsqueeze(-1) + counter)


def uniform(keys: Tensor, num: int | None = None, low: float = 0.0, high: float = 1.0) -> Tensor:
    """Uniform random numbers, equal in every bit on every device.

    Args:
        keys: int64 tensor of any shape.
        num: How many numbers for each key; None for one, without an extra axis.
        low: Lower end, included.
        high: Upper end, excluded up to rounding.

    Returns:
        float32 tensor of shape ``[*keys.shape, num]``, or ``keys.shape`` if ``num`` is None.
    """
    numbers = _shift_right(random_bits(keys, 1 if num is None else num), 40).to(torch.float32) * 2.0**-24
    if (low, high) != (0.0, 1.0):
        numbers = low + (high - low) * numbers
    return numbers if num is not None else numbers.squeeze(-1)


def normal(keys: Tensor, num: int | None = None) -> Tensor:
    """Standard normal random numbers (Box and Muller, 1958), shaped as in `uniform`."""
    bits = random_bits(keys, 1 if num is None else num)
    # 1 - u lies in (0, 1], so that the logarithm is finite
    radius = torch.sqrt(-2.0 * torch.log(1.0 - _shift_right(bits, 40).to(torch.float32) * 2.0**-24))
    angle = (bits & 0xFFFFFF).to(torch.float32) * (2.0 * math.pi * 2.0**-24)
    numbers = radius * torch.cos(angle)
    return numbers if num is not None else numbers.squeeze(-1)


def beta(keys: Tensor, alpha: float) -> Tensor:
    """Random numbers of the symmetric Beta distribution, by the inverse of its distribution function.

    Args:
        keys: int64 tensor of any shape.
        alpha: Both of its parameters, above 0: near 0 the numbers are near 0 or 1, at 1 they are uniform.

    Returns:
        float32 tensor of the shape of the keys, in [0, 1].
    """
    roots, heights = _beta_table(alpha, keys.device)
    numbers = uniform(keys)
    lower = torch.minimum(numbers, 1 - numbers)
    above = torch.searchsorted(heights, lower, right=True).clamp(max=len(heights) - 1)
    step = (lower - heights[above - 1]) / (heights[above] - heights[above - 1])
    root = roots[above - 1].lerp(roots[above], step.clamp(0, 1))
    small = root ** max(1.0, 1 / alpha)
    return torch.where(numbers < 0.5, small, 1 - small)


@functools.cache
def _beta_table(alpha: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """The lower half of Beta's distribution function, of ``x ** min(1, alpha)``, as which it has no pole at 0."""
    with torch.inference_mode(False):
        power = min(1.0, alpha)
        roots = torch.linspace(0, 0.5**power, 4097, dtype=torch.float64)
        x = roots ** (1 / power)
        heights = torch.cumulative_trapezoid(x ** (alpha - power) * (1 - x) ** (alpha - 1), roots)
        heights = torch.cat([heights.new_zeros(1), heights / heights[-1] / 2])
        return roots.to(device, torch.float32), heights.to(device, torch.float32)


def integers(keys: Tensor, low: int, high: int, num: int | None = None) -> Tensor:
    """Random integers from ``low`` (included) to ``high`` (excluded), shaped as in `uniform`, as int64."""
    if high <= low:
        raise ValueError(f"integers needs high > low, got low={low} and high={high}")
    numbers = low + _shift_right(random_bits(keys, 1 if num is None else num), 1) % (high - low)
    return numbers if num is not None else numbers.squeeze(-1)


def permutations(keys: Tensor, num: int) -> Tensor:
    """A random permutation of ``0 .. num - 1`` for each key: int64 tensor of shape ``[*keys.shape, num]``."""
    return random_bits(keys, num).argsort(dim=-1, stable=True)


def gamma(keys: Tensor, shape: float, num: int | None = None) -> Tensor:
    """Random numbers of the Gamma distribution with scale 1 (Marsaglia and Tsang 2000), shaped as in `uniform`.

    Of 16 draws the first one that is accepted is taken; each is with a probability above 0.95. Divided by their sum,
    numbers are Dirichlet's.

    Args:
        keys: int64 tensor of any shape.
        shape: The distribution's shape, above 0.
        num: How many numbers for each key; None for one, without an extra axis.
    """
    tries = fold_in(keys.unsqueeze(-1), torch.arange(1 if num is None else num, device=keys.device))
    third = (shape + 1 if shape < 1 else shape) - 1 / 3
    x = normal(fold_in(tries, "normal"), 16)
    cubes = (1 + x / math.sqrt(9 * third)) ** 3
    height = 0.5 * x * x + third * (1 - cubes + torch.log(cubes.clamp(min=1e-30)))
    accepted = (cubes > 0) & (torch.log(1 - uniform(fold_in(tries, "height"), 16)) < height)
    numbers = third * cubes.gather(-1, accepted.to(torch.uint8).argmax(-1, keepdim=True)).squeeze(-1)
    if shape < 1:
        numbers = numbers * (1 - uniform(fold_in(tries, "power"))) ** (1 / shape)
    return numbers if num is not None else numbers.squeeze(-1)


def number(*labels: int | str) -> int:
    """One non-negative 63-bit number for a tuple of labels: a seed for what cannot be drawn by key (dropout, say).

    It is the key that `fold_in` derives from 0 by one label after the other, without its last bit.
    """
    key = 0
    for label in labels:
        label = _number_of(label) if isinstance(label, str) else label
        key = _mix_one(_mix_one((key + _GOLDEN) & _UNSIGNED) ^ (((label + 1) * 0xD1342543DE82EF95) & _UNSIGNED))
    return key >> 1


def seed_generators(seed: int, device: torch.device) -> None:
    """Seeds what torch's own modules draw from (dropout, say), on the CPU and on a device.

    ``torch.manual_seed`` seeds every kind of device that there could be and notes, for those not in use, where that was
    asked for: most of a millisecond, which is too long for each step.
    """
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)


def sample_order(seed: int, epoch: int, num: int) -> Tensor:
    """The order of the samples in an epoch: an int64 permutation of ``0 .. num - 1``, pure in its arguments."""
    generator = torch.Generator().manual_seed(number("order", seed, epoch))
    return torch.randperm(num, generator=generator)
