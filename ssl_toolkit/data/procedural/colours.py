"""Random colours of a given lightness."""

from __future__ import annotations

import numpy as np
import torch

from ssl_toolkit.random import uniform

# red, green and blue in [0, 1]: arrays of shape [num, 1, 1], one colour for each image, or [num, size, size]
Colour = list[np.ndarray]


def columns(keys: torch.Tensor, num: int) -> list[np.ndarray]:
    """``num`` uniform numbers for each key, each as an array of shape ``[keys, 1, 1]``."""
    return list(uniform(keys, num).T.numpy()[:, :, None, None].copy())


def colour(level: np.ndarray, hue: np.ndarray, strength: np.ndarray) -> Colour:
    """A colour of a given grey level (before clipping to [0, 1]); its hue counts full turns."""
    tint = [np.cos(2 * np.pi * (hue - shift)).astype(np.float32) for shift in (0, 1 / 3, 2 / 3)]
    grey = 0.299 * tint[0] + 0.587 * tint[1] + 0.114 * tint[2]
    return [np.clip(level + strength * (value - grey), 0, 1) for value in tint]


def object_colours(keys: torch.Tensor, ground: np.ndarray) -> list[Colour]:
    """The colours main, second, accent and outline.

    The outline is nearly black. The grey level of each other colour keeps its distance from the one before it, main's
    from the background's; which of them is lighter is left to chance.

    Args:
        keys: int64 tensor of shape ``[num]``.
        ground: The background's lightness in [0, 1], of shape ``[num, 1, 1]``.
    """
    numbers = iter(columns(keys, 9))
    level, chosen = ground, []
    for _ in range(3):
        level = (level + 0.28 + 0.44 * next(numbers)) % 1
        chosen.append(colour(0.4 + 0.5 * level, next(numbers), 0.45 * next(numbers)))
    return [*chosen, [np.full_like(ground, 0.06)] * 3]
