"""Normalisation layers: replacements for those of a timm network, and weight standardization of convolutions.

What is replaced keeps its place, its scale and shift, and, where timm fuses them with the normalisation, its dropout
and activation. So the names of the parameters stay, and whatever matches names (`init`, parameter groups) works on.

    model = timm.create_model("resnet18", num_classes=0)
    replace_norms(model, "group")                  # every BatchNorm2d is now a GroupNorm
    standardize_weights(model)                     # every Conv2d standardises its weights before it uses them
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import torch
from timm.layers import Conv2dSame, LayerNorm2d
from timm.layers.norm import LayerNorm2dFp32, LayerNormExp2d
from timm.layers.norm_act import LayerNormAct2d, LayerNormAct2dFp32
from timm.layers.padding import pad_same
from torch import Tensor, nn
from torch.nn import functional as F

from ssl_toolkit.errors import nearest
from ssl_toolkit.modules.small_maps import SmallMapConv2d

if TYPE_CHECKING:
    from jaxtyping import Float

Norm = Literal["own", "layer", "group", "none"]

MAX_GROUPS = 32

NORMS = (nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm)

# of timm's LayerNorms, those that take [batch, channels, height, width]
CHANNELS_FIRST = (LayerNorm2d, LayerNorm2dFp32, LayerNormExp2d, LayerNormAct2d, LayerNormAct2dFp32)


def check_arguments(norm: str, weight_standardization: bool, pretrained: bool) -> None:
    """Raises a ValueError for arguments of a backbone that are wrong, or make no sense together."""
    if norm not in get_args(Norm):
        raise ValueError(
            f"norm is 'own' (BatchNorm in most networks), 'layer', 'group' or 'none', got {norm!r}"
            f"{nearest(str(norm), get_args(Norm))}"
        )
    if weight_standardization and norm == "none":
        raise ValueError(
            "weight_standardization needs a normalisation after each convolution, got norm='none'; use norm: group"
        )
    if pretrained and (norm != "own" or weight_standardization):
        raise ValueError(
            f"pretrained weights fit the network's own layers only, got norm={norm!r}, "
            f"weight_standardization={weight_standardization}; set pretrained to false"
        )


def replace_norms(model: nn.Module, norm: Norm, in_channels: int = 3) -> None:
    """Replaces every normalisation (BatchNorm, LayerNorm, GroupNorm), in place.

    With "group", a layer whose input has been averaged over all places (after the global pooling, in
    squeeze-and-excitation) gets one group. A group of two numbers would keep nothing but which one is larger.

    Args:
        model: A network of timm.
        norm: "group", "layer" or "none", as `ssl_toolkit.modules.Backbone` explains them; "own" changes nothing.
        in_channels: Channels of the images that the network takes.

    Raises:
        ValueError: If the network has no such layer.
    """
    if norm == "own":
        return
    found = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, NORMS)
    ]
    if not found:
        raise ValueError(f"norm is {norm!r}, but the network has no normalisation layer to replace; use norm: own")
    layers: list[nn.Module] = [layer for _, _, layer in found]
    pooled = _norms_of_one_place(model, layers, in_channels) if norm == "group" else set()
    for parent, name, layer in found:
        one_group = norm == "layer" or layer in pooled
        setattr(parent, name, ScaleAndShift(layer) if norm == "none" else GroupNorm(layer, one_group))


@torch.no_grad()
def _norms_of_one_place(model: nn.Module, layers: list[nn.Module], in_channels: int) -> set[nn.Module]:
    """The layers that get one vector of each image, where the image has the size the network is made for."""
    found: set[nn.Module] = set()

    def look(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        x: Tensor = inputs[0]
        if x.numel() == x.shape[0] * _num_channels(layer):
            found.add(layer)

    hooks = [layer.register_forward_pre_hook(look) for layer in layers]
    training = [each for each in model.modules() if each.training]
    side = cast(Any, model).pretrained_cfg["input_size"][-1]
    model.eval()(next(model.parameters()).new_zeros(1, in_channels, side, side))
    for each in training:
        each.training = True
    for hook in hooks:
        hook.remove()
    return found


def num_groups(num_channels: int) -> int:
    """The most groups of equal size that are at most 32, each of two channels at least where the number allows it."""
    sizes = [groups for groups in range(1, MAX_GROUPS + 1) if num_channels % groups == 0]
    return max(groups for groups in sizes if groups == 1 or groups < num_channels)


class InPlaceOf(nn.Module, ABC):
    """Has the scale, the shift, the dropout, the activation and the layout of another layer.

    Args:
        source: The layer to replace: its parameters are taken over, not copied.
    """

    def _take_over(self, source: nn.Module) -> None:
        layer = cast(Any, source)
        self.weight, self.bias = layer.weight, layer.bias
        self.drop: nn.Module = getattr(layer, "drop", nn.Identity())
        self.act: nn.Module = getattr(layer, "act", nn.Identity())
        # timm's plain LayerNorm takes [batch, height, width, channels]
        self.channels_last = isinstance(source, nn.LayerNorm) and not isinstance(source, CHANNELS_FIRST)
        self.train(source.training)

    @abstractmethod
    def normalize(self, x: Float[Tensor, "batch channels *places"]) -> Float[Tensor, "batch channels *places"]:
        """Of a tensor of shape ``[batch, channels, ...]``."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalises, then drops and activates as the replaced layer did."""
        if self.channels_last:
            x = x.movedim(-1, 1)
        # in the type of the input, as BatchNorm does: under autocast torch's group_norm may return float32
        x = self.act(self.drop(self.normalize(x).to(x.dtype)))
        return x.movedim(1, -1) if self.channels_last else x


class GroupNorm(InPlaceOf, nn.GroupNorm):
    """Group normalisation (Wu and He 2018, arXiv 1803.08494, equation 7) in the place of another layer.

    Args:
        source: The layer to replace.
        one_group: Normalise all channels together: layer normalisation of a feature map.
    """

    def __init__(self, source: nn.Module, one_group: bool = False) -> None:
        channels = _num_channels(source)
        # without parameters, because the source's come next
        nn.GroupNorm.__init__(self, 1 if one_group else num_groups(channels), channels, affine=False)
        self.affine = cast(Any, source).weight is not None
        self._take_over(source)

    def normalize(self, x: Float[Tensor, "batch channels *places"]) -> Float[Tensor, "batch channels *places"]:
        """Each group of channels of each image has mean 0 and variance 1, and is then scaled and shifted."""
        return F.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)


class ScaleAndShift(InPlaceOf):
    """What is left of a normalisation without it: a scale and a shift for each channel.

    Where timm starts the last scale of each residual block with zero, the network begins as SkipInit does (De and Smith
    2020, arXiv 2002.10444), and trains without any normalisation.

    Args:
        source: The layer to replace.
    """

    def __init__(self, source: nn.Module) -> None:
        super().__init__()
        self.num_channels = _num_channels(source)
        self._take_over(source)

    def normalize(self, x: Float[Tensor, "batch channels *places"]) -> Float[Tensor, "batch channels *places"]:
        """Scales and shifts each channel."""
        shape = (1, -1) + (1,) * (x.ndim - 2)
        if self.weight is not None:
            x = x * self.weight.view(shape)
        # never the input itself: an activation that works in place follows
        return x.clone() if self.bias is None else x + self.bias.view(shape)

    def extra_repr(self) -> str:
        return f"{self.num_channels}"


def _num_channels(source: nn.Module) -> int:
    if isinstance(source, nn.BatchNorm2d):
        return source.num_features
    return source.num_channels if isinstance(source, nn.GroupNorm) else cast(nn.LayerNorm, source).normalized_shape[0]


def standardize_weights(model: nn.Module) -> None:
    """Weight standardization of every convolution (Qiao et al. 2019, arXiv 1903.10520), in place.

    Left as they are: 1x1 convolutions with a bias (the fully connected layers of squeeze-and-excitation, with no
    normalisation after them), those with one weight for each output, VGG's fully connected layers, and those
    that timm standardises already.

    Args:
        model: A network of timm; its parameters, their names and values stay.

    Raises:
        ValueError: If it has no convolution to standardise.
    """
    replacements = {nn.Conv2d: StandardizedConv2d, Conv2dSame: StandardizedConv2dSame}
    found = [
        layer
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Conv2d)
        and type(layer) in replacements
        and not (layer.kernel_size == (1, 1) and layer.bias is not None)
        and layer.weight[0].numel() > 1
        and not name.startswith("pre_logits.")
    ]
    if not found:
        raise ValueError(
            "weight_standardization: the network has no convolution to standardise, or standardises its own already; "
            "set weight_standardization to false"
        )
    for layer in found:
        # the new classes add no attribute, and so hooks, parameters and whatever else timm gave the layer stay
        layer.__class__ = replacements[type(layer)]


class StandardizedConv2d(SmallMapConv2d):
    """A convolution whose kernels have mean 0 and variance 1, each output's its own, whatever its parameter holds."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(input, standardized(weight), bias)


class StandardizedConv2dSame(StandardizedConv2d):
    """The same with TensorFlow's padding."""

    def forward(self, input: Tensor) -> Tensor:
        """Pads and convolves."""
        padded = pad_same(input, list(self.kernel_size), list(self.stride), list(self.dilation))
        return self._conv_forward(padded, self.weight, self.bias)


def standardized(
    weight: Float[Tensor, "out_channels in_channels height width"], eps: float = 1e-6
) -> Float[Tensor, "out_channels in_channels height width"]:
    """Kernels with mean 0 and variance 1.

    Args:
        weight: ``[out_channels, in_channels / groups, height, width]``.
        eps: Added to the variance (timm's value; the paper adds 1e-5 to the standard deviation).

    Returns:
        Tensor of the shape of ``weight``.
    """
    variance, mean = torch.var_mean(weight, dim=(1, 2, 3), correction=0, keepdim=True)
    return (weight - mean) * torch.rsqrt(variance + eps)
