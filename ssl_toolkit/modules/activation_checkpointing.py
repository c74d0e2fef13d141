"""Activation checkpointing by stage: recomputes a backbone's stages for the gradient, which takes less memory.

Chen, Xu, Zhang, Guestrin 2016: "Training deep nets with sublinear memory cost", arXiv 1604.06174, section 4.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from ssl_toolkit.modules.backbone import Backbone
from ssl_toolkit.modules.visible import VisiblePlaces, active, only_visible


def checkpoint_stages(backbone: Backbone) -> None:
    """Activation checkpointing: each stage of a backbone keeps only its input while it trains.

    The result and the gradients are those without it. So are the running statistics of batch normalisation, which a
    second pass through the layers would otherwise move twice.

    Args:
        backbone: Its stages are changed in place; the names of the weights stay.
    """
    modules = dict(backbone.model.named_modules())
    for name in backbone.stages:
        stage = modules.get(name)
        if stage is not None and any(True for _ in stage.parameters()):
            stage.forward = functools.partial(_forward, stage, stage.forward)


def _forward(stage: nn.Module, forward: Callable[..., Any], *inputs: Any) -> Any:
    if not stage.training or not torch.is_grad_enabled():
        return forward(*inputs)
    return checkpoint(
        forward, *inputs, use_reentrant=False, context_fn=lambda: (nullcontext(), _again(stage, active()))
    )


@contextmanager
def _again(stage: nn.Module, places: VisiblePlaces | None) -> Iterator[None]:
    """The second pass is confined to the places of the first, which is over, and moves no statistics."""
    with only_visible(places), _kept_statistics(stage):
        yield


@contextmanager
def _kept_statistics(stage: nn.Module) -> Iterator[None]:
    """Batch normalisation moves copies of its running statistics."""
    layers = [layer for layer in stage.modules() if isinstance(layer, _BatchNorm)]
    kept = [dict(layer.named_buffers(recurse=False)) for layer in layers]
    for layer, buffers in zip(layers, kept, strict=True):
        for name, buffer in buffers.items():
            setattr(layer, name, buffer.clone())
    try:
        yield
    finally:
        for layer, buffers in zip(layers, kept, strict=True):
            for name, buffer in buffers.items():
                setattr(layer, name, buffer)
