"""Image tiles: pictures side by side in one."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray


def to_rgb(images: NDArray) -> NDArray[np.uint8]:
    """Brings images to bytes in three channels.

    Args:
        images: Array of shape ``[..., height, width, channels]``: uint8, or floats in [0, 1] (cut off outside). Of
            one or two channels the first is shown as grey; of more than three, the first three as colours.

    Returns:
        uint8 array of shape ``[..., height, width, 3]``.
    """
    if images.dtype != np.uint8:
        images = np.round(np.clip(np.nan_to_num(images), 0, 1) * 255).astype(np.uint8)
    return images[..., :3] if images.shape[-1] >= 3 else images[..., :1].repeat(3, axis=-1)


def tile(images: NDArray, min_side: int = 64, gap: int = 4) -> NDArray[np.uint8]:
    """Lays images out in rows and columns, on a transparent ground.

    Args:
        images: Array of shape ``[rows, columns, height, width, channels]``, as for `to_rgb`.
        min_side: Smaller images are enlarged by a whole factor to about this many pixels.
        gap: Pixels between two images.

    Returns:
        uint8 array of shape ``[height, width, 4]``, the last channel opaque where there is an image.
    """
    images = to_rgb(images)
    factor = max(1, round(min_side / min(images.shape[2:4])))
    images = images.repeat(factor, axis=2).repeat(factor, axis=3)
    rows, columns, height, width, _ = images.shape
    canvas = np.zeros((rows * (height + gap) - gap, columns * (width + gap) - gap, 4), dtype=np.uint8)
    for row in range(rows):
        for column in range(columns):
            top, left = row * (height + gap), column * (width + gap)
            canvas[top : top + height, left : left + width, :3] = images[row, column]
            canvas[top : top + height, left : left + width, 3] = 255
    return canvas


def to_png(pixels: NDArray[np.uint8]) -> bytes:
    """A PNG file of an array of shape ``[height, width, 3 or 4]``."""
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG", optimize=True)
    return stream.getvalue()
