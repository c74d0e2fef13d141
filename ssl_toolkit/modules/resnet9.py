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

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from torch import Tensor, nn

default_cfgs = generate_default_cfgs(
    {
        "resnet9.untrained": {
            "url": "",
            "num_classes": 10,
            "input_size": (3, 32, 32),
            "pool_size": (4, 4),
            "mean": (0.485, 0.456, 0.406),
            "std": (0.229, 0.224, 0.225),
            "first_conv": "stem.0",
            "classifier": "fc",
        }
    }
)


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


class ResNet9(nn.Module):
    """Eight 3x3 convolutions of stride 1, seven of them in three stages that halve the map, and a classifier.

    Args:
        num_classes: Width of the classifier; 0 for none.
        in_chans: Number of channels of the images.
        channels: Number of channels after the first convolution and in each of the three stages. The first and the
            last stage have a residual block.
        drop_rate: Dropout before the classifier.
        global_pool: The last map is averaged; nothing else is known.

    Shape:
        Images ``[batch, in_chans, height, width]`` of 8 pixels a side or more; logits ``[batch, num_classes]``, or
        features ``[batch, channels[-1]]`` without a classifier.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_chans: int = 3,
        channels: Sequence[int] = (64, 128, 256, 512),
        drop_rate: float = 0.0,
        global_pool: Literal["avg"] = "avg",
    ):
        super().__init__()
        if len(channels) != 4 or global_pool != "avg":
            raise ValueError(f"resnet9 takes four channels and global_pool 'avg', got {channels} and {global_pool!r}")
        first, second, third, last = channels
        self.num_classes, self.in_chans, self.drop_rate = num_classes, in_chans, drop_rate
        self.num_features = self.head_hidden_size = last
        self.stem = nn.Sequential(*_convolution(in_chans, first))
        self.layer1 = nn.Sequential(*_convolution(first, second), nn.MaxPool2d(2), Residual(second))
        self.layer2 = nn.Sequential(*_convolution(second, third), nn.MaxPool2d(2))
        self.layer3 = nn.Sequential(*_convolution(third, last), nn.MaxPool2d(2), Residual(last))
        self.fc = nn.Linear(last, num_classes) if num_classes else nn.Identity()
        self.feature_info = [
            {"num_chs": width, "reduction": 2**number, "module": module}
            for number, (width, module) in enumerate(zip(channels, self._stages(), strict=True))
        ]

    @staticmethod
    def _stages() -> tuple[str, ...]:
        return ("stem", "layer1", "layer2", "layer3")

    # what timm's networks share

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        return {"stem": "^stem", "blocks": r"^layer(\d+)"}

    def get_classifier(self) -> nn.Module:
        return self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        self.num_classes = num_classes
        self.fc = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        if output_fmt != "NCHW":
            raise ValueError(f"resnet9 gives maps as NCHW, not {output_fmt!r}")
        taken, last = feature_take_indices(len(self._stages()), indices)
        maps = []
        stages = self._stages()[: last + 1] if stop_early else self._stages()
        for number, stage in enumerate(stages):
            x = getattr(self, stage)(x)
            if number in taken:
                maps.append(x)
        return maps if intermediates_only else (x, maps)

    def forward_features(self, x: Tensor) -> Tensor:
        return self.forward_intermediates(x, indices=1)[0]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = nn.functional.dropout(x.mean(dim=(2, 3)), self.drop_rate, self.training)
        return x if pre_logits else self.fc(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


@register_model
def resnet9(pretrained: bool = False, **kwargs: Any) -> ResNet9:
    """ResNet-9 (Page 2018) for small images; 6.6 million parameters."""
    return build_model_with_cfg(ResNet9, "resnet9", pretrained, **kwargs)
