"""Visible places: has a network compute with some patches of each image, as if nothing else were there.

    see_visible_only(backbone.model, "resnet50")     # once: hooks, which do nothing outside of `only_visible`
    places = VisiblePlaces(visible, grid=4, patch_size=32)
    with only_visible(places):
        features, maps = backbone(images, with_maps=True)

This is the sparse convolution of Tian et al. 2023 (SparK, arXiv 2301.03580, section 3.1), computed densely: what
convolutions and poolings compute is set to 0 where a patch is hidden, so that neighbours see as much of it as of what
lies outside the image. Normalisations, and whatever else looks at a map as a whole, get the visible places alone. So a
batch normalisation has their statistics, running ones and those of several processes included, and a hidden pixel
changes nothing. Where all is visible the network computes what it computes without.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch
from timm.layers import (
    AvgPool2dSame,
    BlurPool2d,
    DropBlock2d,
    DropPath,
    EcaModule,
    EffectiveSEModule,
    GlobalResponseNormMlp,
    Mlp,
    RmsNorm,
    RmsNorm2d,
    SEModule,
    SimpleNorm,
    SimpleNorm2d,
)
from timm.models.convnext import ConvNeXt, ConvNeXtBlock, ConvNeXtStage, Downsample
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from ssl_toolkit.modules.norms import CHANNELS_FIRST, InPlaceOf

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int64

# what computes a place from its neighbours: its hidden places are set to 0 afterwards
_LOCAL = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d, AvgPool2dSame, BlurPool2d)
# what looks at all places together, or adds a bias to each: gets the visible ones alone
_NORMS = (_BatchNorm, nn.GroupNorm, nn.LayerNorm, RmsNorm, RmsNorm2d, SimpleNorm, SimpleNorm2d, InPlaceOf)
_WHOLE = (*_NORMS, Mlp, GlobalResponseNormMlp, SEModule, EffectiveSEModule, EcaModule)
# what is made of layers, and of sums of what they compute
_COMPOSED = (nn.Sequential, BasicBlock, Bottleneck, ConvNeXtStage, ConvNeXtBlock, Downsample)
# what leaves a 0 as it is
_IDLE = (nn.Identity, _DropoutNd, DropPath, DropBlock2d)
_ACTIVATIONS = ("torch.nn.modules.activation", "timm.layers.activations")


class VisiblePlaces:
    """The patches of each image that can be seen, and which places these are in maps of any resolution.

    Args:
        visible: int64 tensor of shape ``[batch, num]``: the numbers of each image's visible patches in reading order,
            0 to ``grid**2 - 1``; as many of each image.
        grid: Patches along a side of an image.
        patch_size: Side of a patch in pixels.

    Attributes:
        visible: Bool tensor of shape ``[batch, grid, grid]``: which patches can be seen.
    """

    def __init__(self, visible: Int64[Tensor, "batch num"], grid: int, patch_size: int) -> None:
        self.batch, self.num = visible.shape
        self.grid = grid
        self._masks: dict[int, Tensor] = {}
        self._rows: dict[int, Tensor] = {}
        hidden = torch.zeros(self.batch, grid**2, dtype=torch.bool, device=visible.device)
        self.visible = hidden.scatter(1, visible, True).view(-1, grid, grid)
        side = patch_size  # of a patch in a map
        while side:
            each = self.visible[:, None, :, None, :, None].expand(-1, 1, grid, side, grid, side)
            self._masks[side] = each.flatten(4).flatten(2, 3)
            width = grid * side
            corners = (visible // grid) * (side * width) + (visible % grid) * side
            corners = corners + torch.arange(self.batch, device=visible.device)[:, None] * width**2
            within = torch.arange(side, device=visible.device)
            self._rows[side] = (corners[..., None, None] + within[:, None] * width + within).flatten()
            side = side // 2 if side % 2 == 0 else 0

    def mask(self, width: int) -> Bool[Tensor, "batch 1 width width"]:
        """Which places of a map can be seen.

        Args:
            width: Side of the map in places.
        """
        return self._masks[self._side(width)]

    def hide(self, x: Float[Tensor, "batch channels width width"]) -> Float[Tensor, "batch channels width width"]:
        """A map with 0 at the hidden places."""
        return x * self.mask(x.shape[-1])

    def take(self, x: Float[Tensor, "batch _ _ _"], channels: int = 1) -> Float[Tensor, "batch _ _ _"]:
        """The visible places of a map, patch by patch, as a map of one column.

        Args:
            x: ``[batch, channels, width, width]``, or ``[batch, width, width, channels]``.
            channels: The dimension of the channels.

        Returns:
            Tensor of shape ``[batch, channels, places, 1]``, or ``[batch, places, 1, channels]``.
        """
        return cast(Tensor, _Take.apply(x, self._rows[self._side(x.shape[2])], channels))

    def put(self, taken: Float[Tensor, "batch _ _ _"], channels: int = 1) -> Float[Tensor, "batch _ _ _"]:
        """The map of which places were taken, with 0 at the hidden ones.

        Args:
            taken: As from `take`.
            channels: As for `take`.
        """
        side = math.isqrt(taken.shape[2 if channels == 1 else 1] // self.num)
        return cast(Tensor, _Put.apply(taken, self._rows[side], channels, self.grid * side))

    def _side(self, width: int) -> int:
        side = width // self.grid
        if width % self.grid or side not in self._masks:
            raise ValueError(
                f"a map of {width}x{width} places cannot be divided into {self.grid}x{self.grid} patches; make views a "
                "multiple of the patches (model.view.size, model.patch_size)"
            )
        return side


# of the pass that is being computed; the hooks below look here
_active: VisiblePlaces | None = None


def active() -> VisiblePlaces | None:
    """The places to which networks are confined now."""
    return _active


@contextmanager
def only_visible(places: VisiblePlaces | None) -> Iterator[None]:
    """Networks that were prepared by `see_visible_only` compute with these places alone; with all of them for None."""
    global _active
    before, _active = _active, places
    try:
        yield
    finally:
        _active = before


def see_visible_only(model: nn.Module, name: str) -> None:
    """Prepares a network for `only_visible`, in place: its layers get hooks, and nothing else is changed.

    The hooks are functions without a state, so that copies of the network have them, too.

    Args:
        model: A ResNet or ConvNeXt of timm without its classifier.
        name: Its name, for messages.

    Raises:
        ValueError: It is of another family, or has a layer of which it is not known how it looks at its neighbours.
    """
    if not isinstance(model, ResNet | ConvNeXt):
        raise ValueError(
            f"masked convolutions are there for ResNets and ConvNeXts, got {name!r}; take resnet18, resnet50 or "
            "convnext_tiny, say"
        )
    network = cast(Any, model)
    first = network.get_submodule(network.pretrained_cfg["first_conv"])
    if _hide_input in first._forward_pre_hooks.values():
        return  # of an earlier task
    first.register_forward_pre_hook(_hide_input)
    head = network.head if isinstance(model, ConvNeXt) else network
    head.global_pool.register_forward_pre_hook(_take)
    for path, child in network.named_children():
        if path not in ("head", "fc", "global_pool"):
            _prepare(child, name, path)


def confine(layer: nn.Module) -> None:
    """Has a normalisation outside of a network see visible places alone, too, within `only_visible`."""
    layer.register_forward_pre_hook(_take)
    layer.register_forward_hook(_put)


def _prepare(layer: nn.Module, name: str, path: str) -> None:
    if isinstance(layer, _LOCAL):
        layer.register_forward_hook(_hide_output)
    elif isinstance(layer, _WHOLE):
        confine(layer)
    elif isinstance(layer, _COMPOSED):
        for child_name, child in layer.named_children():
            _prepare(child, name, f"{path}.{child_name}")
    elif not isinstance(layer, _IDLE) and not _keeps_zero(layer):
        raise ValueError(
            f"{name} cannot be masked: it is not known what its layer {path} ({type(layer).__name__}) makes of hidden "
            "places; take another network, or leave the layer out (model.backbone.kwargs)"
        )


def _keeps_zero(layer: nn.Module) -> bool:
    """Whether it is an activation of single numbers that makes 0 of 0."""
    if not type(layer).__module__.startswith(_ACTIVATIONS) or isinstance(layer, nn.Softmax | nn.MultiheadAttention):
        return False
    with torch.no_grad():
        return not layer(torch.zeros(1, 1)).any()


def _hide_input(layer: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor] | None:
    return None if _active is None else (_active.hide(inputs[0]),)


def _hide_output(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor | None:
    return None if _active is None else _active.hide(output)


def _take(layer: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor] | None:
    return None if _active is None else (_active.take(inputs[0], _channels(layer)),)


def _put(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor | None:
    return None if _active is None else _active.put(output, _channels(layer))


def _channels(layer: nn.Module) -> int:
    """The dimension of the channels in the maps that a layer takes: the last one in parts of ConvNeXts."""
    if isinstance(layer, InPlaceOf):
        is_last = layer.channels_last
    elif isinstance(layer, Mlp | GlobalResponseNormMlp):
        is_last = isinstance(layer.fc1, nn.Linear)
    else:
        is_last = isinstance(layer, nn.LayerNorm | RmsNorm | SimpleNorm) and not isinstance(layer, CHANNELS_FIRST)
    return 3 if is_last else 1


class _Take(torch.autograd.Function):
    """One place is taken once, which autograd does not know of its own ``index_select``: it would add them up."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Tensor, channels: int) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.channels, ctx.width = channels, x.shape[2]
        return _taken(x, rows, channels)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return _spread(grads[0], ctx.saved_tensors[0], ctx.channels, ctx.width), None, None


class _Put(torch.autograd.Function):
    """The reverse. What it makes is no view, which an activation that works in place would pay for."""

    @staticmethod
    def forward(ctx: Any, taken: Tensor, rows: Tensor, channels: int, width: int) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.channels = channels
        return _spread(taken, rows, channels, width)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        return _taken(grads[0], ctx.saved_tensors[0], ctx.channels), None, None, None


def _taken(x: Tensor, rows: Tensor, channels: int) -> Tensor:
    chosen = x.movedim(channels, -1).reshape(-1, x.shape[channels]).index_select(0, rows)
    return chosen.view(len(x), -1, 1, x.shape[channels]).movedim(-1, channels)


def _spread(taken: Tensor, rows: Tensor, channels: int, width: int) -> Tensor:
    num = taken.shape[channels]
    shape = (len(taken), num, width, width) if channels == 1 else (len(taken), width, width, num)
    layout = torch.channels_last if channels == 1 else torch.contiguous_format
    spread = torch.empty(shape, dtype=taken.dtype, device=taken.device, memory_format=layout).zero_()
    chosen = taken.movedim(channels, -1).reshape(-1, num)
    spread.movedim(channels, -1).view(-1, num).index_copy_(0, rows, chosen)
    return spread
