"""Synchronised batch normalisation over all processes, on a CPU too."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.distributed as dist
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ssl_toolkit.distributed.collectives import all_gather_stacked
from ssl_toolkit.distributed.ranks import world_size

# where a module keeps them, and what is said of them
_HOOKS = (
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
)


def convert_sync_batchnorm(module: nn.Module) -> nn.Module:
    """Conversion to synchronised batch normalisation: replaces every one by `SyncBatchNorm`, with the same weights,
    statistics and state-dict keys.

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
        # hooks that read the layer's output, or change its input, stay in place
        for name in _HOOKS:
            setattr(self, name, getattr(source, name))
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
        counts, means, variances = all_gather_stacked(torch.cat([count, mean, var])).split(
            [1, *mean.shape, *var.shape], dim=1
        )
        total = counts.sum()
        weights = counts / total
        mean = (weights * means).sum(0)
        var = (weights * (variances + (means - mean) ** 2)).sum(0)
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


def _statistics_dtype(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _all_but_channels(x: Tensor) -> list[int]:
    return [dim for dim in range(x.ndim) if dim != 1]


def _as_channels(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *[1] * (like.ndim - 2))
