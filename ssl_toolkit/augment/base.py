"""`View`: the base class of views."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from ssl_toolkit.batch import Images

if TYPE_CHECKING:
    from jaxtyping import Float, Int64

# what a CPU's cache holds: larger batches are made in parts
_VALUES_AT_ONCE = 2**20

Drawn = TypeVar("Drawn")


class View(ABC):
    """Base class of views: one view of each image of a batch. To write one, give `make`."""

    @torch.no_grad()
    def __call__(self, images: Images, keys: Int64[Tensor, "*batch"]) -> Float[Tensor, "*batch channels size size"]:
        """Makes the views, without gradients and in full precision even under autocast.

        Args:
            images: The images.
            keys: int64 ``[batch]``: one key of `ssl_toolkit.random` for each image, or ``[num_views, batch]`` for
                several views at once, which is quicker than one after the other. They alone decide what is drawn.

        Returns:
            float32 tensor of shape ``[*keys.shape, channels, size, size]`` with values in [0, 1] up to rounding, on
            the images' device.
        """
        with torch.autocast(images.pixels.device.type, enabled=False):
            if keys.ndim == 1:
                return self.make(images, keys)
            if _parts(images.pixels, len(keys)) > 1:
                return torch.stack([self.make(images, each) for each in keys])
            several = Images(images.pixels.repeat(len(keys), 1, 1, 1), images.sizes.repeat(len(keys), 1))
            return self.make(several, keys.flatten()).unflatten(0, keys.shape)

    @abstractmethod
    def make(self, images: Images, keys: Int64[Tensor, " batch"]) -> Float[Tensor, "batch channels size size"]:
        """Makes one view of each image; arguments and result as in `__call__`."""


def check_size(size: int) -> None:
    """Raises a ValueError for an impossible side of a view."""
    if size < 1:
        raise ValueError(f"size is the side of the views in pixels, from 1, got {size}")


def in_parts(render: Callable[[Tensor, Drawn], Tensor], pixels: Tensor, drawn: Drawn) -> Tensor:
    """Chunked rendering: ``render(pixels, drawn)``, on a CPU by parts of the batch that fit into its cache.

    Args:
        render: Makes views of images, each from its own pixels and what was drawn for it.
        pixels: ``[batch, channels, height, width]``.
        drawn: Tensors of length ``batch``, or None, in a tuple with names, or such tuples in it.
    """
    num = max(1, -(-len(pixels) // _parts(pixels)))
    if num >= len(pixels):
        return render(pixels, drawn)
    views = None
    for start in range(0, len(pixels), num):
        part = slice(start, start + num)
        made = render(pixels[part], _take(drawn, part))
        if views is None:
            views = made.new_empty(len(pixels), *made.shape[1:])
        views[part] = made
    assert views is not None
    return views


def _parts(pixels: Tensor, num_views: int = 1) -> int:
    """In how many parts the views are made."""
    return max(1, -(-num_views * pixels.numel() // _VALUES_AT_ONCE)) if pixels.device.type == "cpu" else 1


def _take(drawn: Any, part: slice) -> Any:
    if drawn is None or isinstance(drawn, Tensor):
        return None if drawn is None else drawn[part]
    return type(drawn)(*(_take(each, part) for each in drawn))
