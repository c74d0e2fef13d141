"""Operations of the automatic policies, by number; each image of a batch has its own.

The images that drew the same operation are taken together, changed, and put back: no operation is computed on an image
that did not draw it. On a GPU the number of images of each operation is read back, once a call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ssl_toolkit.augment import colour, tone, warp

if TYPE_CHECKING:
    from jaxtyping import Float, Int64

# what an operation's amount means, and what makes it: the first five are one warp together
SHEAR_X, SHEAR_Y, TRANSLATE_X, TRANSLATE_Y, ROTATE = range(5)
BRIGHTNESS, COLOUR, CONTRAST, SHARPNESS, POSTERIZE, SOLARIZE, AUTOCONTRAST, EQUALIZE, IDENTITY = range(5, 14)
NUM_OPERATIONS = 14
GEOMETRIC = (SHEAR_X, SHEAR_Y, TRANSLATE_X, TRANSLATE_Y, ROTATE)
ENHANCING = (BRIGHTNESS, COLOUR, CONTRAST, SHARPNESS)

_OPERATIONS: dict[int, Callable[[Tensor, Tensor], Tensor]] = {
    BRIGHTNESS: colour.brightness,
    # what has no colours keeps what it has
    COLOUR: lambda images, factors: colour.saturation(images, factors) if images.shape[1] == 3 else images,
    CONTRAST: colour.contrast,
    SHARPNESS: tone.sharpness,
    POSTERIZE: tone.posterize,
    SOLARIZE: tone.solarize_above,
    AUTOCONTRAST: lambda images, amounts: tone.autocontrast(images),
    EQUALIZE: lambda images, amounts: tone.equalize(images),
}


def apply(
    images: Float[Tensor, "batch channels height width"],
    operations: Int64[Tensor, "batch steps"],
    amounts: Float[Tensor, "batch steps"],
) -> Float[Tensor, "batch channels height width"]:
    """Applies each image's operations, one after the other.

    Args:
        images: float ``[batch, channels, height, width]`` in [0, 1].
        operations: int64 ``[batch, steps]``: which operation comes first, second, ...
        amounts: float ``[batch, steps]``: pixels a pixel for shears, pixels for translations, degrees counter-clockwise
            for rotations, the factor for brightness to sharpness (1 changes nothing), bits for posterizing, the
            threshold for solarizing; no meaning for the others.

    Returns:
        Tensor of the shape of ``images``; not the same memory.
    """
    images = images.clone()
    order = operations.argsort(dim=0, stable=True)
    kinds = torch.arange(NUM_OPERATIONS, device=operations.device)
    counts = (operations.unsqueeze(-1) == kinds).sum(0).tolist()
    for step, numbers in enumerate(counts):
        chosen = order[:, step].split([sum(numbers[: len(GEOMETRIC)]), *numbers[len(GEOMETRIC) :]])
        if len(chosen[0]):
            drawn = operations[chosen[0], step], amounts[chosen[0], step]
            images[chosen[0]] = warp.warp(images[chosen[0]], _matrices(*drawn, *images.shape[-2:]))
        for operation, places in enumerate(chosen[1:], start=len(GEOMETRIC)):
            if len(places) and operation != IDENTITY:
                images[places] = _OPERATIONS[operation](images[places], amounts[places, step])
    return images


def _matrices(operations: Tensor, amounts: Tensor, height: int, width: int) -> Tensor:
    """Of the geometric operations, for `warp`."""
    x, y, right, down = (torch.where(operations == each, amounts, 0.0) for each in GEOMETRIC[:4])
    straight = warp.shears(x, y, height, width)
    straight[:, :, 2] -= torch.stack([right, down], dim=1)
    return torch.where((operations == ROTATE)[:, None, None], warp.rotations(amounts), straight)
