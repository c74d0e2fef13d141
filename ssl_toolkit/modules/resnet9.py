"""ResNet-9: a small residual network for images of 32 to 64 pixels, in timm's registry by the name ``resnet9``.

    backbone = Backbone("resnet9")
    backbone = Backbone("resnet9", kwargs={"channels": [32, 64, 128, 256]})

The network is the one with which Page trains CIFAR-10 in the least time ("How to train your ResNet", 2018, part 4), as
DAWNBench's entries do. It differs from his in two things: the activation is ReLU, and the last map is averaged, where
he takes its maximum and scales the logits. Plain timm does not know it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from timm.models import build_model_with_cfg, register_model
from torch import Tensor, nn

from ssl_toolkit.modules.staged_network import StagedNetwork, default_config

default_cfgs = default_config("resnet9", "stem.0", 32, 4)


def _convolution(in_channels: int, out_channels: int) -> list[nn.Module]:
    """A 3x3 convolution that keeps the map's size, BatchNorm and ReLU."""
    convolution = nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return [convolution, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)]


class Residual(nn.Sequential):
    """Two convolutions whose result is added to what they get."""

    def __init__(self, channels: int):
        super().__init__(*_convolution(channels, channels), *_convolution(channels, channels))

    def forward(self, input: Tensor) -> Tensor:
        return input + super().forward(input)


class ResNet9(StagedNetwork):
    """Eight 3x3 convolutions of stride 1, seven of them in three stages that halve the map, and a classifier.

    Args:
        num_classes: Width of the classifier; 0 for none.
        in_chans: Number of channels of the images.
        channels: Number of channels after the first convolution and in each of the three stages. The first and the
            last stage have a residual block.
        drop_rate: Dropout before the classifier.
        global_pool: The last map is averaged; nothing else is known.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_chans: int = 3,
        channels: Sequence[int] = (64, 128, 256, 512),
        drop_rate: float = 0.0,
        global_pool: Literal["avg"] = "avg",
    ):
        if len(channels) != 4:
            raise ValueError(f"resnet9 takes four channels, got {list(channels)}")
        first, second, third, last = channels
        stages = {
            "stem": nn.Sequential(*_convolution(in_chans, first)),
            "layer1": nn.Sequential(*_convolution(first, second), nn.MaxPool2d(2), Residual(second)),
            "layer2": nn.Sequential(*_convolution(second, third), nn.MaxPool2d(2)),
            "layer3": nn.Sequential(*_convolution(third, last), nn.MaxPool2d(2), Residual(last)),
        }
        super().__init__(stages, channels, (1, 2, 4, 8), num_classes, in_chans, drop_rate, global_pool)


@register_model
def resnet9(pretrained: bool = False, **kwargs: Any) -> ResNet9:
    """ResNet-9 (Page 2018) for small images; 6.6 million parameters."""
    return build_model_with_cfg(ResNet9, "resnet9", pretrained, **kwargs)
