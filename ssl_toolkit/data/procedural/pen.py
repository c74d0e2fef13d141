"""Pen: paints parts of objects, which are signed distances to simple shapes, with an outline."""

from __future__ import annotations

from copy import copy
from typing import NamedTuple

import numpy as np
import torch

from ssl_toolkit.data.procedural.colours import Colour, columns
from ssl_toolkit.random import fold_in

# one for all images, or an array of shape [num, 1, 1]
Number = float | np.ndarray


# the object's corners, mostly empty, may leave the image a little
MARGIN = 0.9


def half_side(scale: np.ndarray) -> np.ndarray:
    """Half of the object's side as a fraction of the image's, from a number in [0, 1)."""
    return 0.31 + 0.14 * scale


class Pose(NamedTuple):
    """How objects lie in their images: arrays of shape ``[num, 1, 1]``.

    Attributes:
        half: Half of an object's side, as a fraction of the image's.
        x: The place of its centre among those where it is inside the image, 0 (left) to 1 (right).
        y: Likewise, 0 (top) to 1 (bottom).
        angle: In radians, clockwise.
        stretch: Of its width, which its height makes up for.
        width: Of its lines, 0 to 1.
    """

    half: np.ndarray
    x: np.ndarray
    y: np.ndarray
    angle: np.ndarray
    stretch: np.ndarray
    width: np.ndarray


def drawn_pose(keys: torch.Tensor) -> Pose:
    """The pose of single images, by chance."""
    scale, x, y, angle, stretch, width = columns(fold_in(keys, "pose"), 6)
    return Pose(half_side(scale), x, y, np.float32(0.4) * (angle - 0.5), 0.9 + 0.2 * stretch, width)


class Pen:
    """Draws parts of objects onto a stack of canvases.

    Its coordinates are the object's own, each image's with a position, size, rotation and stretch by chance: ``u`` to
    the right and ``v`` downwards, the object between -1 and 1. Distances are in the same unit, negative inside; a
    pixel's worth of distance across an edge is blended (anti-aliasing).

    Args:
        canvas: What to draw on, changed in place: float32 planes of shape ``[num, size, size]``.
        keys: int64 tensor of shape ``[num]``: proportions are drawn from them, and the pose where none is given.
        colours: Main, second, accent and outline, for the drawings to choose from.
        pose: Where the objects lie.
    """

    def __init__(self, canvas: Colour, keys: torch.Tensor, colours: list[Colour], pose: Pose | None = None) -> None:
        self._canvas = canvas
        self.mask = np.zeros_like(canvas[0])  # what the object covers so far
        self.main, self.second, self.accent, self.outline = colours
        self._proportions = columns(fold_in(keys, "proportions"), 24)
        size = canvas[0].shape[-1]
        half, x, y, angle, stretch, width = pose or drawn_pose(keys)
        self._pixels = size * half  # in a unit: half of the object's side
        room = 0.5 * size / self._pixels - MARGIN
        across = (np.arange(size, dtype=np.float32) - 0.5 * (size - 1)) / self._pixels - (2 * x - 1) * room
        down = (np.arange(size, dtype=np.float32)[:, None] - 0.5 * (size - 1)) / self._pixels - (2 * y - 1) * room
        self.u = (np.cos(angle) * across + np.sin(angle) * down) * stretch
        self.v = (np.cos(angle) * down - np.sin(angle) * across) / stretch
        self._line_width = (0.7 + 0.5 * width) / self._pixels

    def part(self, images: slice) -> Pen:
        """A pen for some of the images, which it shares with this one."""
        part = copy(self)
        part.mask, part.u, part.v = self.mask[images], self.u[images], self.v[images]
        part._pixels, part._line_width = self._pixels[images], self._line_width[images]
        part._canvas = [plane[images] for plane in self._canvas]
        part._proportions = [each[images] for each in self._proportions]
        colours = (self.main, self.second, self.accent, self.outline)
        part.main, part.second, part.accent, part.outline = ([plane[images] for plane in each] for each in colours)
        return part

    def vary(self, low: float, high: float) -> np.ndarray:
        """The next proportion of each image, of shape ``[num, 1, 1]``."""
        return low + (high - low) * self._proportions.pop(0)

    def fill(self, distance: np.ndarray, colour: Colour, outlined: bool = True) -> None:
        """Paints the part inside over what is there, with a line around it."""
        inside = np.clip(0.5 - distance * self._pixels, 0, 1)
        cover = np.clip(0.5 - (distance - self._line_width) * self._pixels, 0, 1) if outlined else inside
        for plane, value, line in zip(self._canvas, colour, self.outline, strict=True):
            plane += cover * ((line + inside * (value - line) if outlined else value) - plane)
        np.maximum(self.mask, inside, out=self.mask)

    # the shapes: signed distances of shape [num, size, size]

    def circle(self, x: Number, y: Number, radius: Number) -> np.ndarray:
        return np.hypot(self.u - x, self.v - y) - radius

    def ellipse(self, x: Number, y: Number, width: Number, height: Number) -> np.ndarray:
        u, v = (self.u - x) / width, (self.v - y) / height
        level = u * u + v * v
        # the level set's value over the length of its gradient: the distance to first order
        return 0.5 * (level - 1) / np.sqrt((u / width) ** 2 + (v / height) ** 2 + 1e-6)

    def box(self, x: Number, y: Number, width: Number, height: Number) -> np.ndarray:
        return np.maximum(np.abs(self.u - x) - width, np.abs(self.v - y) - height)

    def line(self, x1: Number, y1: Number, x2: Number, y2: Number, radius: Number) -> np.ndarray:
        du, dv = x2 - x1, y2 - y1
        u, v = self.u - x1, self.v - y1
        along = np.clip((u * du + v * dv) / (du * du + dv * dv), 0, 1)
        return np.hypot(u - along * du, v - along * dv) - radius

    def polygon(self, *corners: tuple[Number, Number]) -> np.ndarray:
        """Convex, its corners in clockwise order as seen."""
        edges = []
        for (x1, y1), (x2, y2) in zip(corners, corners[1:] + corners[:1], strict=True):
            du, dv = x2 - x1, y2 - y1
            edges.append(((self.u - x1) * dv - (self.v - y1) * du) / np.hypot(du, dv))
        return np.maximum.reduce(edges)
