"""Collectives: gathered embeddings, sums and averages over processes.

With these, W processes of batch B compute the loss and the gradients of one process of batch W x B. Everything runs on
CPU (gloo) and on GPU (nccl), and is the identity where there is one process.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor

from ssl_toolkit.distributed.ranks import rank, world_size

_MAX_NDIM = 7
# as numbers that can be sent; a kind that is not here is sent as -1
_DTYPES = (
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
)


def gather(x: Tensor) -> Tensor:
    """All-gather with gradients: the tensors of all processes, in the order of the ranks.

    The gradient of ``x`` is the sum over the processes of their gradients for this part. So where every process
    computes the loss of the whole batch, the gradient is W times that of one process, and DDP's average over the
    processes makes it exactly that of one process. (A gather without this sum has been the cause of wrong gradients
    in many a contrastive code base.)

    Args:
        x: Tensor of shape ``[batch, ...]``, the same in every process.

    Returns:
        Tensor of shape ``[world_size * batch, ...]``; ``x`` itself in one process.

    Raises:
        ValueError: In every process, if shapes or dtypes differ (gloo would return scrambled data, nccl would hang).
    """
    if world_size() == 1:
        return x
    _check_same_shape("gather", x)
    return cast(Tensor, _Gather.apply(x))


def gather_uneven(x: Tensor) -> tuple[Tensor, int]:
    """All-gather, with gradients as in `gather`, of tensors whose lengths may differ, in the order of the ranks.

    Args:
        x: Tensor of shape ``[num, ...]``; all but ``num`` is the same in every process.

    Returns:
        The rows of all processes, and the place of this process's first among them; ``x`` and 0 in one process.
    """
    if world_size() == 1:
        return x, 0
    lengths = all_gather_stacked(torch.tensor([len(x)], device=x.device)).flatten().tolist()
    longest, start = max(lengths), sum(lengths[: rank()])
    if min(lengths) == longest:
        return gather(x), start
    filled = torch.cat([x, x.new_zeros(longest - len(x), *x.shape[1:])])
    parts = gather(filled).unflatten(0, (len(lengths), longest))
    return torch.cat([part[:length] for part, length in zip(parts, lengths, strict=True)]), start


def relative_size(num: int, device: torch.device) -> Tensor:
    """The number of this process's samples over the mean of all processes: 1 where each has as many.

    Args:
        num: Samples of this process.
        device: Where the scalar is; a GPU is not waited for.
    """
    own = torch.full((), float(num), device=device)
    if world_size() == 1:
        return torch.ones_like(own)
    return own * world_size() / _summed(own)


def weighted_means(sums: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    """Weighted means over the processes, of which each gives its sum and its weight by name.

    Args:
        sums: ``(sum of weight times value, sum of weights)`` by name. A process may lack names that another has.

    Returns:
        The means by name, equal in every process. A name whose weights are all 0 is left out.
    """
    parts = [dict(sums)] * world_size()
    if world_size() > 1:
        dist.all_gather_object(parts, dict(sums))
    totals: dict[str, tuple[float, float]] = {}
    for part in parts:
        for name, (total, weight) in part.items():
            before = totals.get(name, (0.0, 0.0))
            totals[name] = (before[0] + total, before[1] + weight)
    return {name: total / weight for name, (total, weight) in totals.items() if weight}


def all_reduce_sum(x: Tensor) -> Tensor:
    """All-reduce with gradients: the sum of a float tensor over the processes.

    As with `gather`, the gradient of ``x`` is the sum over the processes of their gradients for the result: where every
    process computes the loss of the whole batch, DDP's average makes it exactly that of one process. (An ``all_reduce``
    behind autograd's back leaves 1/W of it; the mean of the losses of local statistics is another loss.)

    Args:
        x: Float tensor of any shape, the same shape in every process.

    Returns:
        Tensor of the same shape; ``x`` itself in one process.

    Raises:
        ValueError: In every process, if shapes or dtypes differ.
    """
    if world_size() == 1:
        return x
    _check_same_shape("all_reduce_sum", x)
    return cast(Tensor, _AllReduceSum.apply(x))


def standardize(x: Tensor, eps: float = 1e-5) -> Tensor:
    """Standardization with gradients: each column has mean 0 and variance 1 over the samples of all processes.

    The arithmetic of `SyncBatchNorm` in training, but wherever it is called, and also for a single sample, which
    becomes 0. The processes may have different numbers of samples.

    Args:
        x: Float tensor of shape ``[batch, width]``, float32 at least.
        eps: Added to the variances, so that a column that is constant becomes 0.
    """
    count = all_reduce_sum(x.new_full((), len(x)))
    centred = x - all_reduce_sum(x.sum(dim=0)) / count
    variance = all_reduce_sum(centred.square().sum(dim=0)) / count
    return centred * torch.rsqrt(variance + eps)


def all_reduce_mean(x: Tensor) -> Tensor:
    """All-reduce without gradient: the mean of a float tensor over the processes.

    Args:
        x: Float tensor of any shape, the same shape in every process.

    Raises:
        ValueError: In every process, if shapes or dtypes differ (gloo would end a process without a word).
    """
    if world_size() == 1:
        return x.detach().clone()
    _check_same_shape("all_reduce_mean", x)
    return _summed(x.detach()) / world_size()


def all_reduce_max(x: Tensor) -> Tensor:
    """All-reduce of the maximum of each number over the processes.

    Args:
        x: Tensor of any shape, the same shape and dtype in every process, which is not asked.

    Returns:
        Tensor of the same shape; ``x`` itself in one process.
    """
    if world_size() == 1:
        return x
    largest = x.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    return largest


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.batch = x.shape[0]
        return all_gather_stacked(x.contiguous()).flatten(0, 1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return _summed(grads[0]).narrow(0, rank() * ctx.batch, ctx.batch)


class _AllReduceSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return _summed(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return _summed(grads[0])


def _summed(x: Tensor) -> Tensor:
    """The sum over the processes, in a new tensor: all_reduce works in place, and ``x`` may be autograd's."""
    total = x.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total)
    return total


def all_gather_stacked(x: Tensor) -> Tensor:
    """Contiguous ``x`` of every rank, stacked: shape ``[world_size, *x.shape]``."""
    parts = x.new_empty(world_size() * x.numel())  # flat, because gloo and nccl agree on no other shape
    dist.all_gather_into_tensor(parts, x.view(-1))
    return parts.view(world_size(), *x.shape)


def _check_same_shape(what: str, x: Tensor) -> None:
    assert x.ndim <= _MAX_NDIM
    # always asked, and never of a memory of shapes that were the same: a process that remembers does not ask one that
    # does, and both would take the other's numbers for something else
    kind = _DTYPES.index(x.dtype) if x.dtype in _DTYPES else -1
    description = [kind, x.element_size(), *x.shape, *([-1] * (_MAX_NDIM - x.ndim))]
    descriptions = all_gather_stacked(torch.tensor(description, device=x.device)).tolist()
    if any(other != descriptions[0] for other in descriptions):
        shapes = ", ".join(
            f"{[size for size in other[2:] if size >= 0]} of {_dtype_name(*other[:2])} in rank {number}"
            for number, other in enumerate(descriptions)
        )
        raise ValueError(f"{what} needs the same shape in every process, got {shapes}; drop the last, incomplete batch")


def _dtype_name(kind: int, num_bytes: int) -> str:
    return str(_DTYPES[kind]).removeprefix("torch.") if kind >= 0 else f"{num_bytes}-byte numbers"
