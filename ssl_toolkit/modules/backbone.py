"""The backbone: any convolutional network of timm, by name, with the feature maps of every stage.

    backbone = Backbone("resnet50")
    features = backbone(images)                    # [batch, 2048]; images are floats in [0, 1]
    features, last = backbone(images, with_map=True)    # and the last feature map, in the same pass
    features, maps = backbone(images, with_maps=True)   # or those of every stage
    maps = backbone.feature_maps(images)           # {"act1": ..., "layer1": ..., ..., "layer4": [batch, 2048, h, w]}

The networks are those of timm (Wightman, "PyTorch Image Models", 2019, doi:10.5281/zenodo.4414861), and so are the
keys of their weights. A network with the standard stem loads its weights into a plain timm model::

    model = timm.create_model("resnet18", num_classes=0, checkpoint_path="backbone.safetensors")

With `stem: small` the plain timm model needs the same two changes first (with `stem: middle` and stride=2). For a
ResNet they are::

    model = timm.create_model("resnet18", num_classes=0)
    model.conv1 = torch.nn.Conv2d(3, 64, kernel_size=3, stride=1, padding=1, bias=False)
    model.maxpool = torch.nn.Identity()
    model.load_state_dict(safetensors.torch.load_file("backbone.safetensors"))

With another `norm`, or with `weight_standardization`, a plain timm model computes something else; `load_backbone` does
not, and neither does an exported ONNX graph.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from jsonargparse.typing import final
from torch import Tensor, nn

from ssl_toolkit.errors import nearest, no_switch
from ssl_toolkit.modules.least_size import check_size, is_too_small
from ssl_toolkit.modules.norms import Norm, check_arguments, replace_norms, standardize_weights
from ssl_toolkit.modules.small_maps import quicken_small_maps
from ssl_toolkit.modules.stem import STEMS, shrink_stem
from ssl_toolkit.modules.timm_network import check_name, create_model, plain_kwargs

if TYPE_CHECKING:
    from jaxtyping import Float


@final
class Backbone(nn.Module):
    """A convolutional network without its classifier.

    Args:
        name: Name of a convolutional network of timm (``resnet18``, ``resnet50``, ``convnext_tiny``,
            ``efficientnet_b0``, ``regnety_008``, ``mobilenetv3_large_100``, ...), with or without the tag of its
            pretrained weights (``resnet18.a1_in1k``).
        pretrained: Start from timm's supervised weights (downloaded once) instead of random ones.
        stem: ``small`` is for images of 32 to 64 pixels: the first convolution is 3x3 with stride 1 and the pooling
            after it is left out, as in SimCLR's CIFAR-10 experiments (Chen et al. 2020, arXiv:2002.05709, appendix
            B.9). Feature maps are then 2 to 4 times larger on each side. ``middle`` leaves out the pooling and keeps
            the stride: 3x3 with stride 2, half the map's side of ``small`` for a quarter of its time. Where the first
            kernel shrinks to 3x3 its weights start from random values, even if ``pretrained``.
        in_channels: Number of channels of the images.
        kwargs: Further arguments of the timm network, plain data only, e.g. ``{drop_path_rate: 0.1}``, or
            ``{channels: [16, 32, 64, 128]}`` for a narrow ResNet.
        norm: ``own`` keeps the network's normalisation layers, BatchNorm in most. The others see one image at a time,
            so that the batch may be of any size: ``group`` has 32 groups of channels, fewer where the width asks for it
            (Wu and He 2018, arXiv:1803.08494); ``layer`` normalises all channels and places of an image together
            (Ba et al. 2016, arXiv:1607.06450, as GroupNorm with one group); ``none`` leaves a scale and a shift for
            each channel. Scales start as those of the network's own layers.
        weight_standardization: Standardise the kernels of the convolutions (Qiao et al. 2019, arXiv:1903.10520), made
            for ``norm: group`` and small batches.

    Attributes:
        model: The timm network; its state dict is what a weights file holds.
        num_features: Width of the pooled features.
        stages: Names of the stages (timm's module names), shallow to deep.
        stage_channels: Number of channels of each stage's feature map.
        mean: Mean of each channel in [0, 1], subtracted from the images.
        std: Standard deviation of each channel, by which the images are then divided.

    Raises:
        ValueError: For an unknown or non-convolutional network, for arguments it does not take, for pretrained weights
            that cannot be had, for a small or middle stem where the stem has nothing to leave out, and for a norm where
            there is nothing to replace.
    """

    _mean: Tensor
    _std: Tensor

    def __init__(
        self,
        name: str = "resnet18",
        pretrained: bool = False,
        stem: Literal["standard", "middle", "small"] = "standard",
        in_channels: int = 3,
        kwargs: dict[str, Any] | None = None,
        norm: Norm = "own",
        weight_standardization: bool = False,
    ):
        super().__init__()
        check_name(name)
        if not isinstance(pretrained, bool):
            raise ValueError(no_switch("pretrained", pretrained))
        if stem not in STEMS:
            raise ValueError(f"stem is one of {', '.join(STEMS)}, got {stem!r}{nearest(str(stem), STEMS)}")
        if in_channels < 1:
            raise ValueError(f"in_channels must be at least 1, got {in_channels}")
        check_arguments(norm, weight_standardization, pretrained)
        self.name, self.pretrained, self.stem, self.in_channels = name, pretrained, stem, in_channels
        self.norm, self.weight_standardization = norm, weight_standardization
        self.kwargs = plain_kwargs(kwargs)
        # Any, because timm's networks share these methods and attributes by convention, not by a base class
        self.model: Any = create_model(name, pretrained, in_channels, self.kwargs)
        self._takes = math.inf  # the smallest images known to be large enough, in pixels
        if stem != "standard":
            shrink_stem(self.model, name, stem)
        replace_norms(self.model, norm, in_channels)
        if weight_standardization:
            standardize_weights(self.model)
        quicken_small_maps(self.model)
        self.num_features: int = self.model.head_hidden_size
        self.stages: list[str] = [info["module"] or "stem" for info in self.model.feature_info]
        self.stage_channels: list[int] = [info["num_chs"] for info in self.model.feature_info]
        self.set_normalization(*(_per_channel(self.model.pretrained_cfg[key], in_channels) for key in ("mean", "std")))

    def set_normalization(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        """Sets what is subtracted from the images, and by what they are then divided, one number for each channel."""
        if len(mean) != self.in_channels or len(std) != self.in_channels or not all(value > 0 for value in std):
            raise ValueError(
                f"mean and std need {self.in_channels} numbers each, those of std above 0; got mean={mean}, std={std}"
            )
        self.mean, self.std = tuple(mean), tuple(std)
        # Buffers follow the module to its device and dtype; not persistent, so that the weights keep timm's keys.
        for key, values in (("_mean", mean), ("_std", std)):
            buffer = torch.tensor(values).view(1, -1, 1, 1)
            if hasattr(self, key):
                buffer = buffer.to(getattr(self, key))
            self.register_buffer(key, buffer, persistent=False)

    def config(self) -> dict[str, Any]:
        """The arguments that build this backbone again, as plain data."""
        return {
            "name": self.name,
            "pretrained": self.pretrained,
            "stem": self.stem,
            "in_channels": self.in_channels,
            "kwargs": plain_kwargs(self.kwargs),
            "norm": self.norm,
            "weight_standardization": self.weight_standardization,
        }

    def forward(
        self, x: Float[Tensor, "batch channels height width"], with_map: bool = False, with_maps: bool = False
    ) -> Float[Tensor, "batch features"] | tuple[Float[Tensor, "batch features"], Any]:
        """Pooled features, and the feature map of the last stage, or those of all, if they are asked for.

        Args:
            x: Float tensor of shape ``[batch, in_channels, height, width]``, values in [0, 1], not normalised.
            with_map: Whether the last stage's map is returned, too.
            with_maps: Whether the maps of all stages are returned, instead.

        Returns:
            Tensor of shape ``[batch, num_features]``; with the map a pair of it and a tensor of shape ``[batch,
            channels, h, w]``, with the maps a pair of it and what `feature_maps` gives, which are those of one pass.
        """
        if not (with_map or with_maps):
            return self._run(self.model, x)
        last, maps = self._run(self.model.forward_intermediates, x, output_fmt="NCHW")
        features = self.model.forward_head(last)
        return features, dict(zip(self.stages, maps, strict=True)) if with_maps else maps[-1]

    def feature_maps(self, x: Float[Tensor, "batch channels height width"]) -> dict[str, Float[Tensor, "batch _ _ _"]]:
        """The feature map of every stage, shallow to deep.

        Args:
            x: As for `forward`.

        Returns:
            For each name in ``stages`` a tensor of shape ``[batch, channels, h, w]``.
        """
        maps = self._run(self.model.forward_intermediates, x, output_fmt="NCHW", intermediates_only=True)
        return dict(zip(self.stages, maps, strict=True))

    def stage_features(self, x: Float[Tensor, "batch channels height width"]) -> dict[str, Float[Tensor, "batch _"]]:
        """The globally averaged feature map of every stage, and last, under ``"pooled"``, the pooled features.

        Args:
            x: As for `forward`.

        Returns:
            For each name in ``stages`` a tensor of shape ``[batch, channels]``, then ``"pooled"`` as from `forward`.
        """
        last, maps = self._run(self.model.forward_intermediates, x, output_fmt="NCHW")
        features = {stage: maps.mean(dim=(2, 3)) for stage, maps in zip(self.stages, maps, strict=True)}
        return features | {"pooled": self.model.forward_head(last)}

    @torch.no_grad()
    def map_sides(self, side: int) -> dict[str, int]:
        """Side of each stage's feature map of square images of a side, all in pixels."""
        was_training = self.training
        self.eval()
        maps = self.feature_maps(self._mean.new_zeros(1, self.in_channels, side, side))
        self.train(was_training)
        return {stage: each.shape[-1] for stage, each in maps.items()}

    def extra_repr(self) -> str:
        changed = f", norm={self.norm!r}" if self.norm != "own" else ""
        changed += ", weight_standardization=True" if self.weight_standardization else ""
        size = f"in_channels={self.in_channels}, num_features={self.num_features}"
        return f"{self.name!r}, stem={self.stem!r}, {size}{changed}"

    def check_channels(self, channels: int, weights: str | Path | None = None) -> None:
        """Raises a ValueError for images that the network does not take, before they are read.

        Args:
            channels: How many channels they have.
            weights: The weights file that the network comes from, whose images had as many as the network takes.
        """
        if channels == self.in_channels:
            return
        own = f"--data.channels {self.in_channels}"
        if weights is not None:
            raise ValueError(
                f"data.channels is {channels}, but {weights} is a backbone for images with {self.in_channels}: "
                f"set {own}"
            )
        kind = {1: "grey ", 3: "RGB "}.get(channels, "")
        raise ValueError(
            f"data.channels is {channels}, but the backbone takes images with {self.in_channels}: set "
            f"--model.backbone.in_channels {channels} for {kind}images, or {own}"
        )

    def check_size(self, side: int) -> None:
        """Raises a ValueError for square images of a side in pixels that are too small for the network."""
        if side < self._takes:
            check_size(self.model, self.name, self.in_channels, side)
            self._takes = side

    def _run(self, function: Callable[..., Any], x: Tensor, **kwargs: Any) -> Any:
        try:
            return function(self._normalize(x), **kwargs)
        except RuntimeError as error:
            if is_too_small(error):
                self.check_size(min(x.shape[2:]))
            raise

    def _normalize(self, x: Tensor) -> Tensor:
        if x.ndim != 4 or x.shape[1] != self.in_channels or not x.is_floating_point():
            raise ValueError(
                f"a backbone takes floats in [0, 1] of shape [batch, {self.in_channels}, height, width], "
                f"got {x.dtype} of shape {list(x.shape)}"
            )
        # elementwise, so the memory format (channels_last) stays
        return (x - self._mean) / self._std


def _per_channel(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """As they are for as many channels, else their average for each channel."""
    return tuple(values) if len(values) == channels else (sum(values) / len(values),) * channels
