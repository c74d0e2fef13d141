"""What several processes must agree on: gathered embeddings, sums, averages, and batch-norm statistics.

With these, W processes of batch B compute the loss, the gradients and the batch-norm statistics of one process of
batch W x B. Everything runs on CPU (gloo) and on GPU (nccl), and is the identity where there is one process.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.distributed as dist
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ssl_toolkit.processes import rank, world_size

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
    """The tensors of all processes, one after the other in the order of the ranks, with gradients to each process.

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


def all_reduce_sum(x: Tensor) -> Tensor:
    """The sum of a float tensor over the processes, with gradients to each process.

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
    """Each column with mean 0 and variance 1 over the samples of all processes, with gradients to each process.

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
    """The average of a float tensor over the processes, without gradient.

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
    """The largest of each number over the processes.

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


def convert_sync_batchnorm(module: nn.Module) -> nn.Module:
    """Replaces every batch normalisation by `SyncBatchNorm`, with the same weights, statistics and state-dict keys.

    Unlike ``torch.nn.SyncBatchNorm`` the new layers also work on CPU, in one process (as before, bit for bit) and for
    timm's ``BatchNormAct2d``, whose dropout and activation they keep.

    Args:
        module: The network; its parts are replaced in place.

    Returns:
        The network; another object only if ``module`` is a batch normalisation itself.
    """
    if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
        return SyncBatchNorm(module)
    for name, child in module.named_children():
        new = convert_sync_batchnorm(child)
        if new is not child:
            setattr(module, name, new)
    return module


class SyncBatchNorm(_BatchNorm):
    """Batch normalisation (Ioffe & Szegedy 2015, arXiv:1502.03167) over the batches of all processes.

    Batches of different sizes are weighted by their sizes, so the result is that of one process with all images. The
    statistics are computed in float32 at least, also under autocast.

    Args:
        source: The layer to replace: its parameters and buffers are taken over, not copied.
    """

    def __init__(self, source: _BatchNorm):
        # on the meta device, because the source's parameters and buffers come next
        super().__init__(
            source.num_features,
            eps=source.eps,
            momentum=source.momentum,
            affine=source.affine,
            track_running_stats=source.track_running_stats,
            device=torch.device("meta"),
        )
        self.weight, self.bias = source.weight, source.bias
        self.running_mean, self.running_var = source.running_mean, source.running_var
        self.num_batches_tracked = source.num_batches_tracked
        parts = source if isinstance(source, BatchNormAct2d) else None
        self.drop: nn.Module = cast(nn.Module, parts.drop) if parts else nn.Identity()
        self.act: nn.Module = cast(nn.Module, parts.act) if parts else nn.Identity()
        self.train(source.training)

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2:
            raise ValueError(
                f"batch normalisation takes a tensor of shape [batch, channels, ...], got {list(input.shape)}"
            )

    def forward(self, input: Tensor) -> Tensor:
        """Normalises a tensor of shape ``[batch, channels, ...]``, then drops and activates as the source did."""
        use_batch = self.training or self.running_mean is None
        if not use_batch or world_size() == 1:
            normalized = super().forward(input)
        else:
            self._check_input_dim(input)
            normalized = self._normalize_by_global_batch(input)
        return self.act(self.drop(normalized))

    def _normalize_by_global_batch(self, input: Tensor) -> Tensor:
        normalized, mean, var, count = _GlobalBatchNorm.apply(input, self.weight, self.bias, self.eps)
        if self.training and self.running_mean is not None and self.running_var is not None:
            assert self.num_batches_tracked is not None
            self.num_batches_tracked.add_(1)
            factor = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
            unbiased = var * (count / (count - 1).clamp(min=1))
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), factor)
            self.running_var.lerp_(unbiased.to(self.running_var.dtype), factor)
        return normalized


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.batch = x.shape[0]
        return _all_gather(x.contiguous()).flatten(0, 1)

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


class _GlobalBatchNorm(torch.autograd.Function):
    """Returns the normalised input and, without gradient, mean, biased variance and count of the global batch."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        values = x.to(_statistics_dtype(x))
        dims = _all_but_channels(x)
        # Means and variances are combined (Chan, Golub, LeVeque 1983), because the difference of the mean square and
        # the squared mean cancels where the mean is large.
        var, mean = torch.var_mean(values, dims, correction=0)
        count = mean.new_full((1,), x.numel() / x.shape[1])
        counts, means, variances = _all_gather(torch.cat([count, mean, var])).split([1, *mean.shape, *var.shape], dim=1)
        total = counts.sum()
        shares = counts / total
        mean = (shares * means).sum(0)
        var = (shares * (variances + (means - mean) ** 2)).sum(0)
        inverse_std = torch.rsqrt(var + eps)
        scale = inverse_std if weight is None else inverse_std * weight.to(values.dtype)
        normalized = (values - _as_channels(mean, x)) * _as_channels(scale, x)
        if bias is not None:
            normalized += _as_channels(bias.to(values.dtype), x)
        ctx.save_for_backward(x, weight, mean, inverse_std, total)
        ctx.mark_non_differentiable(mean, var, total)
        return normalized.to(x.dtype), mean, var, total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, None]:
        x, weight, mean, inverse_std, total = ctx.saved_tensors
        grad = grads[0].to(mean.dtype)
        dims = _all_but_channels(x)
        standardized = (x.to(mean.dtype) - _as_channels(mean, x)) * _as_channels(inverse_std, x)
        # the parameters' gradients stay those of this process: DDP reduces them
        local = torch.stack([grad.sum(dims), (grad * standardized).sum(dims)])
        everywhere = local.clone()
        dist.all_reduce(everywhere)
        grad_mean, grad_dot = everywhere / total
        scale = inverse_std if weight is None else inverse_std * weight.to(mean.dtype)
        centred = grad - _as_channels(grad_mean, x) - standardized * _as_channels(grad_dot, x)
        grad_x = (centred * _as_channels(scale, x)).to(x.dtype)
        if weight is None:
            return grad_x, None, None, None
        return grad_x, local[1].to(weight.dtype), local[0].to(weight.dtype), None


def _summed(x: Tensor) -> Tensor:
    """The sum over the processes, in a tensor of its own: all_reduce works in place, and ``x`` may be autograd's."""
    total = x.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total)
    return total


def _all_gather(x: Tensor) -> Tensor:
    """Contiguous ``x`` of every rank, stacked: shape ``[world_size, *x.shape]``."""
    parts = x.new_empty(world_size() * x.numel())  # flat, because gloo and nccl agree on no other shape
    dist.all_gather_into_tensor(parts, x.view(-1))
    return parts.view(-1, *x.shape)


def _check_same_shape(what: str, x: Tensor) -> None:
    assert x.ndim <= _MAX_NDIM
    # always asked, and never of a memory of shapes that were the same: a process that remembers does not ask one that
    # does, and both would take the other's numbers for something else
    kind = _DTYPES.index(x.dtype) if x.dtype in _DTYPES else -1
    description = [kind, x.element_size(), *x.shape, *([-1] * (_MAX_NDIM - x.ndim))]
    descriptions = _all_gather(torch.tensor(description, device=x.device)).tolist()
    if any(other != descriptions[0] for other in descriptions):
        shapes = ", ".join(
            f"{[size for size in other[2:] if size >= 0]} of {_dtype_name(*other[:2])} in rank {number}"
            for number, other in enumerate(descriptions)
        )
        raise ValueError(f"{what} needs the same shape in every process, got {shapes}; drop the last, incomplete batch")


def _dtype_name(kind: int, num_bytes: int) -> str:
    return str(_DTYPES[kind]).removeprefix("torch.") if kind >= 0 else f"{num_bytes}-byte numbers"


def _statistics_dtype(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _all_but_channels(x: Tensor) -> list[int]:
    return [dim for dim in range(x.ndim) if dim != 1]


def _as_channels(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *[1] * (like.ndim - 2))
