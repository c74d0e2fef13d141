"""The stem of a network for small images: no pooling, a 3x3 kernel, stride 1 or 2."""

from __future__ import annotations

from typing import Any, Literal, cast

from torch import nn

STEMS = ("standard", "middle", "small")

# Where timm's families keep the pooling of their stem, and the padding that belongs to it.
_POOLS = ("maxpool", "pool0", "stem.pool", "stem.pad", "features.pool0", "features.conv1_pool")


def shrink_stem(model: nn.Module, name: str, stem: Literal["middle", "small"]) -> None:
    """Sets the first convolution's stride to 1 (2 for ``middle``), its kernel to at most 3x3, and drops the pooling."""
    stride = 1 if stem == "small" else 2
    first = cast(Any, model).pretrained_cfg["first_conv"]
    paths = [first] if isinstance(first, str) else first  # several where it has parallel branches (RepVGG)
    convolutions = [cast(nn.Conv2d, model.get_submodule(path)) for path in paths]
    strides = {max(convolution.stride) for convolution in convolutions}
    pools = _pools(model)
    if strides == {1} or (not pools and strides == {stride}):
        what = "with no pooling after it; " if strides != {1} else "already; "
        raise ValueError(
            f"{name!r} has no {stem} stem: its first convolution has stride {max(strides)} {what}use stem: standard"
        )
    for convolution in convolutions:
        convolution.stride = (stride, stride)
        if max(convolution.kernel_size) > 3:
            out_channels, in_channels = convolution.weight.shape[:2]
            convolution.kernel_size, convolution.padding = (3, 3), (1, 1)
            convolution.weight = nn.Parameter(convolution.weight.new_empty(out_channels, in_channels, 3, 3))
            nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    for path in pools:
        parent, _, child = path.rpartition(".")
        setattr(model.get_submodule(parent), child, nn.Identity())


def _pools(model: nn.Module) -> list[str]:
    """Names of the modules that reduce the map after the first convolution."""
    found = []
    for path in _POOLS:
        try:
            pool = model.get_submodule(path)
        except AttributeError:
            continue
        # a pool of stride 1 is a branch of the stem (HGNet), not a reduction
        if getattr(pool, "stride", 2) not in (1, (1, 1)):
            found.append(path)
    return found
