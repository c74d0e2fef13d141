"""Scene of one image: background, object, texture, light and grain."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby

import numpy as np
import torch

from ssl_toolkit.data.procedural.colours import Colour, colour, columns, object_colours
from ssl_toolkit.data.procedural.pen import Pen, Pose
from ssl_toolkit.random import fold_in, random_bits, uniform

# The fraction of images whose light and dark are exchanged. It keeps dark outlines in usual places from giving the
# class away to a linear classifier of the pixels: 0.38 top-1 without, 0.27 with it.
NEGATIVES = 0.2


def background(keys: torch.Tensor, size: int) -> tuple[Colour, np.ndarray]:
    """Two blended colours and a few shapes without outline in front of them; also the lightness in [0, 1]."""
    num = len(keys)
    level, hue, change, other, strength, depth = columns(fold_in(keys, "ground"), 6)
    first = colour(0.5 + 0.4 * level, hue, 0.4 * strength)
    last = colour(0.5 + 0.4 * level + 0.25 * (change - 0.5), other, 0.4 * strength)
    # smooth noise: a random 6 x 6 grid, bilinearly enlarged
    grid = uniform(fold_in(keys, "cloud"), 36).numpy().reshape(num, 6, 6)
    place = np.linspace(0, 5, size, dtype=np.float32)[:, None]
    enlarge = np.maximum(0, 1 - np.abs(place - np.arange(6, dtype=np.float32)))
    cloud = np.clip(0.5 + (0.5 + 2 * depth) * (enlarge @ grid @ enlarge.T - 0.5), 0, 1)
    planes = [a + cloud * (b - a) for a, b in zip(first, last, strict=True)]

    across = np.linspace(-1, 1, size, dtype=np.float32)
    down = across[:, None]
    for shape in range(3):
        x, y, width, height, turn, kind, shift, hue, strength = columns(fold_in(fold_in(keys, "clutter"), shape), 9)
        u, v = across - (2.4 * x - 1.2), down - (2.4 * y - 1.2)
        cosine, sine = np.cos(np.pi * turn), np.sin(np.pi * turn)
        u, v = (cosine * u + sine * v) / (0.12 + 0.5 * width), (cosine * v - sine * u) / (0.12 + 0.5 * height)
        # a rectangle or an ellipse, filled or as a frame
        reach = np.where(kind < 0.5, np.maximum(np.abs(u), np.abs(v)), np.hypot(u, v))
        reach = np.where(kind % 0.5 < 0.25, reach, np.abs(reach - 0.8) + 0.8)
        cover = np.clip((1 - reach) * (0.1 * size), 0, 0.8)
        tone = colour(0.5 + 0.4 * level + 0.3 * (shift - 0.5), hue, 0.4 * strength)
        for plane, value in zip(planes, tone, strict=True):
            plane += cover * (value - plane)
    return planes, level


def surface(keys: torch.Tensor) -> list[np.ndarray]:
    """Random numbers of the surface: stripes, turn, phase and depth of a texture, light, its direction, negative."""
    return columns(fold_in(keys, "surface"), 7)


def draw_scenes(
    draw_objects: Sequence[Callable[[Pen], None]], keys: torch.Tensor, size: int, pose: Pose | None = None
) -> np.ndarray:
    """Images of objects; quicker where the images of one kind of object follow each other.

    Args:
        draw_objects: What draws the object of each image.
        keys: int64 tensor of shape ``[num]``, of each image.
        size: Height and width in pixels.
        pose: Where the objects lie; by chance if none is given.

    Returns:
        uint8 array of shape ``[num, size, size, 3]``.
    """
    planes, ground = background(keys, size)
    pen = Pen(planes, keys, object_colours(fold_in(keys, "colours"), ground), pose)
    start = 0
    for draw_object, same in groupby(draw_objects):
        stop = start + len(list(same))
        draw_object(pen.part(slice(start, stop)))
        start = stop

    # one texture over the object, one light over everything, grain
    stripes, turn, phase, depth, light, aim, negative = surface(keys)
    angle, frequency = np.pi * turn, 5 + 13 * stripes
    wave = np.sin(frequency * (np.cos(angle) * pen.u + np.sin(angle) * pen.v) + 2 * np.pi * phase)
    texture = pen.mask * wave * (0.1 * depth)
    ramp = np.linspace(-1, 1, size, dtype=np.float32)
    shade = 1 + 0.3 * (light - 0.5) + 0.18 * (np.cos(2 * np.pi * aim) * ramp + np.sin(2 * np.pi * aim) * ramp[:, None])
    count = 3 * size * size
    grain = random_bits(fold_in(keys, "grain"), -(-count // 8)).numpy().view(np.uint8)[:, :count]
    grain = grain.reshape(len(keys), 3, size, size)
    noise = columns(fold_in(keys, "noise"), 1)[0] * np.float32(0.08 / 255)

    image = np.empty((len(keys), size, size, 3), np.uint8)
    for channel, plane in enumerate(planes):
        value = plane + texture
        value = np.where(negative < NEGATIVES, 1 - value, value) * shade
        value += noise * (grain[:, channel] - np.float32(127.5))
        image[..., channel] = np.clip(value, 0, 1) * 255 + 0.5
    return image
