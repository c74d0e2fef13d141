"""Targets of the built-in images: numbers that are known of each drawing, for regression and multi-label tasks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from ssl_toolkit.data.procedural.colours import columns
from ssl_toolkit.data.procedural.pen import MARGIN, half_side
from ssl_toolkit.data.procedural.scene import NEGATIVES, surface
from ssl_toolkit.errors import nearest
from ssl_toolkit.random import fold_in

Facts = Callable[[torch.Tensor, list[str]], NDArray[np.float32]]


def _pose(keys: torch.Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Side of the object and the place of its centre as fractions of the image's side, and its angle in degrees."""
    scale, x, y, angle, *_ = (each.reshape(-1) for each in columns(fold_in(keys, "pose"), 6))
    half = half_side(scale)
    room = 0.5 - MARGIN * half
    return 2 * half, 0.5 + (2 * x - 1) * room, 0.5 + (2 * y - 1) * room, np.rad2deg(0.4 * (angle - 0.5))


def _is(*kinds: str) -> Facts:
    return lambda _, names: np.isin(names, kinds).astype(np.float32)


# By name: numbers, and facts that are true (1) or not (0).
TARGETS: dict[str, Facts] = {
    "size": lambda keys, _: _pose(keys)[0],
    "x": lambda keys, _: _pose(keys)[1],
    "y": lambda keys, _: _pose(keys)[2],
    "angle": lambda keys, _: _pose(keys)[3],
    "animal": _is("bird", "fish"),
    "vehicle": _is("boat", "car"),
    "plant": _is("flower", "tree"),
    "left": lambda keys, _: (_pose(keys)[1] < 0.5).astype(np.float32),
    "negative": lambda keys, _: (surface(keys)[6].reshape(-1) < NEGATIVES).astype(np.float32),
}


def targets_of(keys: torch.Tensor, class_names: list[str], wanted: Sequence[str]) -> NDArray[np.float32]:
    """Some targets of some images.

    Args:
        keys: int64 tensor of shape ``[num]``: what the images are drawn from.
        class_names: The class of each image.
        wanted: Names of `TARGETS`: ``size`` (of the object, as a fraction of the image's side, 0.62 to 0.9), ``x`` and
            ``y`` (of its centre, 0 to 1 from the left and from the top), ``angle`` (in degrees, clockwise, within 11.5
            either way), ``animal``, ``vehicle``, ``plant``, ``left`` (the centre is in the left half) and ``negative``
            (light and dark are exchanged).

    Returns:
        float32 array of shape ``[num, wanted]``.
    """
    return np.stack([TARGETS[name](keys, class_names) for name in wanted], axis=1).astype(np.float32)


def check_targets(wanted: Sequence[str], option: str = "data.targets") -> None:
    """Raises a ValueError for a target that the built-in images do not have, or that an option names twice."""
    for place, name in enumerate(wanted):
        if name not in TARGETS:
            raise ValueError(
                f"{option} has {name!r}; the built-in images have {', '.join(TARGETS)}{nearest(name, TARGETS)}"
            )
        if name in wanted[:place]:
            raise ValueError(f"{option} has {name!r} twice")
