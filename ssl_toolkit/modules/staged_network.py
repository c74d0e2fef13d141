"""`StagedNetwork`: what timm expects of a network, for the small ones that this project adds to its registry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from timm.models import generate_default_cfgs
from timm.models._features import feature_take_indices
from torch import Tensor, nn


def default_config(name: str, first_conv: str, input_size: int, pool_size: int) -> Any:
    """What timm keeps of a network without pretrained weights.

    Args:
        name: Of the network in timm's registry.
        first_conv: Name of its first convolution.
        input_size: Side of its images in pixels.
        pool_size: Side of its last map for these.
    """
    settings = {
        "url": "",
        "num_classes": 10,
        "input_size": (3, input_size, input_size),
        "pool_size": (pool_size, pool_size),
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "first_conv": first_conv,
        "classifier": "fc",
    }
    return generate_default_cfgs({f"{name}.untrained": settings})


class StagedNetwork(nn.Module):
    """Stages one after the other, the mean of the last map, and a linear classifier.

    Args:
        stages: By name, shallow to deep.
        channels: Of each stage's map.
        reductions: By how much each stage's map is smaller than the image, on a side.
        num_classes: Width of the classifier; 0 for none.
        in_chans: Number of channels of the images.
        drop_rate: Dropout before the classifier.
        global_pool: The last map is averaged; nothing else is known.

    Shape:
        Images ``[batch, in_chans, height, width]``; logits ``[batch, num_classes]``, or features
        ``[batch, channels[-1]]`` without a classifier.
    """

    def __init__(
        self,
        stages: Mapping[str, nn.Module],
        channels: Sequence[int],
        reductions: Sequence[int],
        num_classes: int,
        in_chans: int,
        drop_rate: float,
        global_pool: Literal["avg"],
    ) -> None:
        super().__init__()
        if global_pool != "avg":
            raise ValueError(f"{type(self).__name__.lower()} takes global_pool 'avg', got {global_pool!r}")
        self.num_classes, self.in_chans, self.drop_rate = num_classes, in_chans, drop_rate
        self.num_features = self.head_hidden_size = channels[-1]
        self._stages = tuple(stages)
        for name, stage in stages.items():
            self.add_module(name, stage)
        self.fc = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        self.feature_info = [
            {"num_chs": width, "reduction": reduction, "module": module}
            for width, reduction, module in zip(channels, reductions, stages, strict=True)
        ]

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
            raise ValueError(f"{type(self).__name__.lower()} gives maps as NCHW, not {output_fmt!r}")
        taken, last = feature_take_indices(len(self._stages), indices)
        maps = []
        stages = self._stages[: last + 1] if stop_early else self._stages
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
