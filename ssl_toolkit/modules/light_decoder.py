"""Light decoder: from the maps of a network that has seen some patches of an image to the pixels of all of them."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ssl_toolkit.modules.visible import VisiblePlaces, confine

if TYPE_CHECKING:
    from jaxtyping import Float


class LightDecoder(nn.Module):
    """Hierarchical decoder of Tian et al. 2023 (SparK, arXiv 2301.03580, section 3.2): the upper half of a U-Net.

    Each map is made dense: its hidden places are filled with an embedding that is learned, one for each resolution, and
    it is projected to the decoder's width there. From the deepest map on, each block doubles the resolution and halves
    the width, and the dense map of its resolution is added to what it begins with.

    Args:
        channels: Of each map, by its stride in pixels; the largest stride is a power of two, and there the decoder
            begins. A stride below may have no map; one as large as the images is not used.
        width: Channels where the decoder begins; a multiple of that stride.
        out_channels: Of the images.
    """

    def __init__(self, channels: Mapping[int, int], width: int, out_channels: int) -> None:
        super().__init__()
        deepest = max(channels)
        strides = [2**power for power in reversed(range(deepest.bit_length()))]
        if strides[0] != deepest:
            raise ValueError(f"a decoder that doubles the resolution needs a stride of a power of two, got {deepest}")
        if width < deepest or width % deepest:
            raise ValueError(f"model.decoder_width is {width}, expected a multiple of the network's stride, {deepest}")
        self.strides = strides[:-1]  # where a block begins
        widths = [width * stride // deepest for stride in strides]
        begins = zip(self.strides, widths[:-1], strict=True)
        self.densify = nn.ModuleDict({str(s): _Densify(channels[s], each) for s, each in begins if s in channels})
        self.blocks = nn.ModuleList(_Block(wide, narrow) for wide, narrow in pairwise(widths))
        self.predict = nn.Conv2d(widths[-1], out_channels, 1)
        # it begins with what is next to the mean of each patch
        nn.init.trunc_normal_(self.predict.weight, std=0.02)
        nn.init.zeros_(self.predict.bias)  # pyright: ignore[reportArgumentType]

    def forward(
        self, maps: Mapping[int, Float[Tensor, "batch _ _ _"]], places: VisiblePlaces
    ) -> Float[Tensor, "batch channels height width"]:
        """Images.

        Args:
            maps: By their stride, as in ``channels``; of shape ``[batch, channels, h, w]``.
            places: What the network has seen.

        Returns:
            Tensor of shape ``[batch, out_channels, height, width]``.
        """
        x: Tensor | None = None
        for stride, block in zip(self.strides, self.blocks, strict=True):
            if str(stride) in self.densify:
                dense = self.densify[str(stride)](maps[stride], places.mask(maps[stride].shape[-1]))
                x = dense if x is None else x + dense
            x = block(x)
        return self.predict(x)


class _Densify(nn.Module):
    """Fills hidden places with an embedding, and projects to the decoder's width."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        confine(self.norm)
        self.embedding = nn.Parameter(torch.empty(channels))
        nn.init.trunc_normal_(self.embedding, std=0.02)
        self.project = nn.Conv2d(channels, width, 1)

    def forward(self, x: Tensor, visible: Tensor) -> Tensor:
        x = self.norm(x)
        return self.project(torch.where(visible, x, self.embedding.to(x.dtype)[:, None, None]))


class _Block(nn.Module):
    """Doubles the resolution, and then changes the width."""

    def __init__(self, width: int, narrower: int) -> None:
        super().__init__()
        self.enlarge = nn.ConvTranspose2d(width, width, 4, stride=2, padding=1)
        self.layers = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU6(inplace=True),
            nn.Conv2d(width, narrower, 3, padding=1, bias=False),
            nn.BatchNorm2d(narrower),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(self.enlarge(x))
