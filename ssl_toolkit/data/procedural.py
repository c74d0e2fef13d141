"""The built-in images: ten kinds of objects, drawn from ``(seed, index)``, so that nothing has to be downloaded.

Each picture shows one schematic object - a house, a tree, a fish ... - upright, with its parts in their places, on a
cluttered background. Colours, their order in brightness, textures, position, size, proportions, a small rotation,
light and noise are drawn without regard to the class. So no pixel has a mean that depends on the class and a linear
classifier of the pixels fails, while shapes and parts give the class away.

The objects are drawn by signed distances to simple shapes: negative inside, positive outside, in units of half the
object's side; one pixel's worth of distance on either side of the edge is blended (anti-aliasing).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from ssl_toolkit.data.decode import BadImage
from ssl_toolkit.data.sources import Source
from ssl_toolkit.random import fold, random_bits, sample_keys, uniform

NEG=float(os.environ.get('NEG','0.2'))
_CHUNK = 32  # images drawn at once: their float32 planes stay in the processor's second-level cache


class _Pen:
    """Draws parts of objects of one class onto a stack of canvases.

    Attributes:
        planes: Red, green and blue, each a float32 array of shape ``[num, size, size]``, in [0, 1].
        mask: What the object covers so far, of the same shape.
        main, second, accent: The object's three colours: lists of three arrays of shape ``[num, 1, 1]``.
    """

    def __init__(self, planes: list[np.ndarray], keys: torch.Tensor, colours: list[list[np.ndarray]]) -> None:
        self.planes = planes
        self.mask = np.zeros_like(planes[0])
        self.main, self.second, self.accent, self.outline = colours
        self._numbers = iter(_columns(fold(keys, "proportions"), 24))
        size = planes[0].shape[-1]
        scale, x, y, angle, stretch, width = _columns(fold(keys, "pose"), 6)
        self.pixels = size * (0.31 + 0.14 * scale)  # half of the object's side, in pixels
        room = (0.5 * size - 0.9 * self.pixels) / self.pixels
        angle = np.float32(0.4) * (angle - 0.5)
        across = (np.arange(size, dtype=np.float32) - 0.5 * (size - 1)) / self.pixels - (2 * x - 1) * room
        down = (np.arange(size, dtype=np.float32)[:, None] - 0.5 * (size - 1)) / self.pixels - (2 * y - 1) * room
        stretch = 0.9 + 0.2 * stretch
        self.u = (np.cos(angle) * across + np.sin(angle) * down) * stretch
        self.v = (np.cos(angle) * down - np.sin(angle) * across) / stretch
        self.line_width = (0.7 + 0.5 * width) / self.pixels

    def vary(self, low: float, high: float) -> np.ndarray:
        """The next proportion of each image, of shape ``[num, 1, 1]``."""
        return low + (high - low) * next(self._numbers)

    def fill(self, distance: np.ndarray, colour: list[np.ndarray], outlined: bool = True) -> None:
        """Paints what lies inside, with a line around it."""
        inside = np.clip(0.5 - distance * self.pixels, 0, 1)
        cover = np.clip(0.5 - (distance - self.line_width) * self.pixels, 0, 1) if outlined else inside
        for plane, value, line in zip(self.planes, colour, self.outline, strict=True):
            plane += cover * ((line + inside * (value - line) if outlined else value) - plane)
        np.maximum(self.mask, inside, out=self.mask)

    # the shapes: signed distances of shape [num, size, size]; every number may be an array of shape [num, 1, 1]

    def circle(self, x, y, radius) -> np.ndarray:
        return np.hypot(self.u - x, self.v - y) - radius

    def ellipse(self, x, y, width, height) -> np.ndarray:
        u, v = (self.u - x) / width, (self.v - y) / height
        level = u * u + v * v
        # the level set's value over the length of its gradient: the distance to first order
        return 0.5 * (level - 1) / np.sqrt((u / width) ** 2 + (v / height) ** 2 + 1e-6)

    def box(self, x, y, width, height) -> np.ndarray:
        return np.maximum(np.abs(self.u - x) - width, np.abs(self.v - y) - height)

    def line(self, x1, y1, x2, y2, radius) -> np.ndarray:
        du, dv = x2 - x1, y2 - y1
        u, v = self.u - x1, self.v - y1
        along = np.clip((u * du + v * dv) / (du * du + dv * dv), 0, 1)
        return np.hypot(u - along * du, v - along * dv) - radius

    def polygon(self, *corners) -> np.ndarray:
        """Convex, its corners in clockwise order as seen."""
        edges = []
        for (x1, y1), (x2, y2) in zip(corners, corners[1:] + corners[:1], strict=True):
            du, dv = x2 - x1, y2 - y1
            edges.append(((self.u - x1) * dv - (self.v - y1) * du) / np.hypot(du, dv))
        return np.maximum.reduce(edges)


def _house(pen: _Pen) -> None:
    wide, eaves, top = pen.vary(0.55, 0.75), pen.vary(-0.25, 0.0), pen.vary(-0.95, -0.75)
    side = pen.vary(0.3, 0.45)
    pen.fill(pen.box(side, eaves - 0.45, 0.11, 0.35), pen.accent)
    pen.fill(pen.box(0, (0.9 + eaves) / 2, wide, (0.9 - eaves) / 2), pen.main)
    pen.fill(pen.polygon((-wide - 0.2, eaves), (0, top), (wide + 0.2, eaves)), pen.second)
    pen.fill(pen.box(-0.25, 0.62, pen.vary(0.12, 0.18), 0.29), pen.accent)
    window = pen.vary(0.13, 0.19)
    pen.fill(pen.box(0.28, 0.35, window, window), pen.second)
    pen.fill(np.minimum(pen.box(0.28, 0.35, 0.03, window), pen.box(0.28, 0.35, window, 0.03)), pen.main, False)


def _tree(pen: _Pen) -> None:
    wide, low = pen.vary(0.32, 0.42), pen.vary(-0.05, 0.1)
    pen.fill(pen.polygon((-0.1, 0), (0.1, 0), (pen.vary(0.12, 0.22), 0.95), (-0.17, 0.95)), pen.second)
    crown = np.minimum(pen.circle(-0.42, low, wide), pen.circle(0.42, low, wide))
    pen.fill(np.minimum(crown, pen.circle(0, -0.45, pen.vary(0.45, 0.52))), pen.main)
    for x, y in ((-0.4, 0.05), (0.35, 0.0), (0.05, -0.6), (-0.05, -0.15)):
        pen.fill(pen.circle(x + pen.vary(-0.1, 0.1), y, 0.09), pen.accent, False)


def _fish(pen: _Pen) -> None:
    height, tail = pen.vary(0.38, 0.52), pen.vary(0.35, 0.55)
    pen.fill(pen.polygon((0.3, 0), (0.95, -tail), (0.8, 0)), pen.second)
    pen.fill(pen.polygon((0.3, 0), (0.8, 0), (0.95, tail)), pen.second)
    pen.fill(pen.polygon((-0.35, -0.3), (pen.vary(0.0, 0.25), -0.75), (0.25, -0.2)), pen.second)
    pen.fill(pen.ellipse(-0.2, 0, 0.72, height), pen.main)
    pen.fill(np.maximum(pen.ellipse(-0.2, 0, 0.68, height - 0.04), np.abs(pen.u + 0.3) - 0.05), pen.second, False)
    pen.fill(pen.polygon((-0.1, 0.08), (0.25, 0.2), (0.1, pen.vary(0.3, 0.42))), pen.accent)
    pen.fill(pen.circle(-0.6, -0.1, 0.11), pen.accent)
    pen.fill(pen.circle(-0.62, -0.1, 0.05), pen.outline, False)


def _car(pen: _Pen) -> None:
    roof, wheel, front = pen.vary(-0.55, -0.4), pen.vary(0.2, 0.27), pen.vary(-0.45, -0.3)
    cabin = pen.polygon((-0.65, 0.05), (front, roof), (0.4, roof), (0.68, 0.05))
    pen.fill(np.minimum(cabin, pen.box(0, 0.25, 0.95, 0.25)), pen.main)
    pen.fill(pen.polygon((-0.48, 0.02), (front + 0.08, roof + 0.1), (-0.04, roof + 0.1), (-0.04, 0.02)), pen.second, False)
    pen.fill(pen.polygon((0.06, 0.02), (0.06, roof + 0.1), (0.33, roof + 0.1), (0.5, 0.02)), pen.second, False)
    pen.fill(pen.box(-0.85, 0.2, 0.08, 0.07), pen.accent, False)
    for x in (-0.5, 0.5):
        pen.fill(pen.circle(x, 0.5, wheel), pen.accent)
        pen.fill(pen.circle(x, 0.5, 0.09), pen.second, False)


def _cup(pen: _Pen) -> None:
    top, foot = pen.vary(-0.45, -0.25), pen.vary(0.3, 0.45)
    pen.fill(pen.ellipse(-0.1, 0.78, 0.8, 0.14), pen.second)
    pen.fill(np.abs(pen.circle(0.52, 0.12, pen.vary(0.25, 0.32))) - 0.075, pen.main)
    pen.fill(pen.polygon((-0.7, top), (0.5, top), (foot - 0.1, 0.75), (-foot - 0.1, 0.75)), pen.main)
    pen.fill(pen.ellipse(-0.1, top, 0.6, 0.13), pen.second)
    pen.fill(pen.circle(-0.1, 0.3, pen.vary(0.1, 0.2)), pen.accent, False)
    for x in (-0.35, 0.1):
        bend = pen.vary(-0.12, 0.12)
        lower, upper = pen.line(x, top - 0.12, x + bend, -0.7, 0.045), pen.line(x + bend, -0.7, x, -0.95, 0.045)
        pen.fill(np.minimum(lower, upper), pen.accent, False)


def _face(pen: _Pen) -> None:
    wide, eyes, apart = pen.vary(0.55, 0.7), pen.vary(-0.12, 0.02), pen.vary(0.22, 0.3)
    pen.fill(np.minimum(pen.circle(-wide, 0.05, 0.17), pen.circle(wide, 0.05, 0.17)), pen.main)
    head = pen.ellipse(0, 0.05, wide, 0.85)
    pen.fill(head, pen.main)
    pen.fill(np.maximum(head, pen.v - pen.vary(-0.45, -0.3)), pen.second)
    for x in (-apart, apart):
        pen.fill(pen.ellipse(x, eyes, 0.15, 0.11), pen.accent)
        pen.fill(pen.circle(x, eyes, 0.06), pen.outline, False)
    pen.fill(pen.line(0, 0.1, 0.05, 0.3, 0.04), pen.second, False)
    pen.fill(np.maximum(pen.ellipse(0, 0.48, pen.vary(0.22, 0.35), 0.2), 0.48 - pen.v), pen.second)


def _bird(pen: _Pen) -> None:
    head, tail = pen.vary(-0.55, -0.4), pen.vary(-0.35, 0.1)
    legs = np.minimum(pen.line(-0.05, 0.5, -0.1, 0.92, 0.035), pen.line(0.2, 0.5, 0.17, 0.92, 0.035))
    feet = np.minimum(pen.line(-0.1, 0.92, -0.28, 0.92, 0.035), pen.line(0.17, 0.92, 0.0, 0.92, 0.035))
    pen.fill(np.minimum(legs, feet), pen.accent)
    pen.fill(pen.polygon((0.3, 0.1), (0.9, tail), (1.0, tail + 0.25), (0.4, 0.35)), pen.second)
    pen.fill(pen.polygon((-0.95, head + 0.08), (-0.6, head - 0.1), (-0.6, head + 0.14)), pen.accent)
    body = pen.ellipse(0.08, 0.22, pen.vary(0.5, 0.6), 0.38)
    pen.fill(np.minimum(np.minimum(body, pen.circle(-0.42, head, 0.28)), pen.line(-0.35, head, -0.15, 0.2, 0.2)), pen.main)
    pen.fill(np.maximum(pen.ellipse(0.2, 0.12, 0.4, pen.vary(0.24, 0.32)), 0.05 - pen.v), pen.second)
    pen.fill(pen.circle(-0.48, head - 0.05, 0.065), pen.outline, False)


def _key(pen: _Pen) -> None:
    radius, thick = pen.vary(0.32, 0.42), pen.vary(0.09, 0.13)
    shaft = pen.box(0, 0.35, 0.09, 0.6)
    teeth = np.minimum(pen.box(0.22, pen.vary(0.8, 0.86), 0.2, 0.08), pen.box(0.2, pen.vary(0.5, 0.6), 0.15, 0.07))
    pen.fill(np.minimum(shaft, teeth), pen.main)
    pen.fill(np.abs(pen.circle(0, -0.5, radius)) - thick, pen.second)
    pen.fill(pen.box(0, 0.0, 0.2, 0.07), pen.accent)


def _boat(pen: _Pen) -> None:
    deck, top = pen.vary(0.32, 0.45), pen.vary(-0.85, -0.7)
    pen.fill(pen.box(0, -0.2, 0.05, 0.7), pen.main)
    pen.fill(pen.polygon((0.05, -0.95), (pen.vary(0.25, 0.4), -0.87), (0.05, -0.79)), pen.accent, False)
    pen.fill(pen.polygon((0.1, top), (pen.vary(0.6, 0.85), deck - 0.12), (0.1, deck - 0.12)), pen.second)
    pen.fill(pen.polygon((-0.1, top + 0.2), (-0.1, deck - 0.12), (pen.vary(-0.7, -0.5), deck - 0.12)), pen.accent)
    pen.fill(pen.polygon((-0.95, deck), (0.95, deck), (0.6, 0.9), (-0.6, 0.9)), pen.main)
    for x in (-0.4, 0, 0.4):
        pen.fill(pen.circle(x, deck + 0.22, 0.085), pen.second, False)


def _flower(pen: _Pen) -> None:
    y, spread, petal = pen.vary(-0.4, -0.25), pen.vary(0.34, 0.4), pen.vary(0.2, 0.27)
    pen.fill(pen.line(0, y, pen.vary(-0.1, 0.1), 0.95, 0.055), pen.second)
    pen.fill(pen.ellipse(-0.3, pen.vary(0.5, 0.7), 0.3, 0.13), pen.second)
    pen.fill(pen.ellipse(0.3, pen.vary(0.4, 0.75), 0.3, 0.13), pen.second)
    turn = pen.vary(0, 2 * np.pi)
    petals = [pen.circle(spread * np.cos(turn + k), y + spread * np.sin(turn + k), petal) for k in np.arange(5) * 0.4 * np.pi]
    pen.fill(np.minimum.reduce(petals), pen.main)
    pen.fill(pen.circle(0, y, 0.19), pen.accent)


_OBJECTS: dict[str, Callable[[_Pen], None]] = {
    "bird": _bird,
    "boat": _boat,
    "car": _car,
    "cup": _cup,
    "face": _face,
    "fish": _fish,
    "flower": _flower,
    "house": _house,
    "key": _key,
    "tree": _tree,
}


def _columns(keys: torch.Tensor, num: int) -> list[np.ndarray]:
    """``num`` uniform numbers for each key, each as an array of shape ``[keys, 1, 1]``."""
    return list(uniform(keys, num).T.numpy()[:, :, None, None].copy())


def _colour(level: np.ndarray, hue: np.ndarray, strength: np.ndarray) -> list[np.ndarray]:
    """A colour of a given grey level: three arrays, for red, green and blue."""
    tint = [np.cos(2 * np.pi * (hue - shift)).astype(np.float32) for shift in (0, 1 / 3, 2 / 3)]
    grey = 0.299 * tint[0] + 0.587 * tint[1] + 0.114 * tint[2]
    return [np.clip(level + strength * (value - grey), 0, 1) for value in tint]


def _colours(keys: torch.Tensor, ground: np.ndarray) -> list[list[np.ndarray]]:
    """The object's colours: main, second, accent, outline.

    The grey level of each differs from the one before it, main's from the background's, by at least a quarter of the
    scale in either direction.
    """
    numbers = iter(_columns(keys, 9))
    level, colours = ground, []
    for _ in range(3):
        level = (level + 0.28 + 0.44 * next(numbers)) % 1
        colours.append(_colour(0.4 + 0.5 * level, next(numbers), 0.45 * next(numbers)))
    outline = np.full_like(ground, 0.06)
    return [*colours, [outline] * 3]


def _background(keys: torch.Tensor, size: int) -> tuple[list[np.ndarray], np.ndarray]:
    """Two blended colours and a few shapes in front of them; also the mean grey level."""
    num = len(keys)
    level, hue, change, other, strength, depth = _columns(fold(keys, "ground"), 6)
    first = _colour(0.5 + 0.4 * level, hue, 0.4 * strength)
    last = _colour(0.5 + 0.4 * level + 0.25 * (change - 0.5), other, 0.4 * strength)
    # smooth noise: a random 6 x 6 grid, bilinearly enlarged
    grid = uniform(fold(keys, "cloud"), 36).numpy().reshape(num, 6, 6)
    place = np.linspace(0, 5, size, dtype=np.float32)[:, None]
    enlarge = np.maximum(0, 1 - np.abs(place - np.arange(6, dtype=np.float32)))
    cloud = np.clip(0.5 + (0.5 + 2 * depth) * (enlarge @ grid @ enlarge.T - 0.5), 0, 1)
    planes = [a + cloud * (b - a) for a, b in zip(first, last, strict=True)]

    across = np.linspace(-1, 1, size, dtype=np.float32)
    down = across[:, None]
    for shape in range(3):
        x, y, width, height, turn, kind, shift, hue, strength = _columns(fold(fold(keys, "clutter"), shape), 9)
        u, v = across - (2.4 * x - 1.2), down - (2.4 * y - 1.2)
        cosine, sine = np.cos(np.pi * turn), np.sin(np.pi * turn)
        u, v = (cosine * u + sine * v) / (0.12 + 0.5 * width), (cosine * v - sine * u) / (0.12 + 0.5 * height)
        # a rectangle, an ellipse, a half-plane's stripe or a frame
        reach = np.where(kind < 0.5, np.maximum(np.abs(u), np.abs(v)), np.hypot(u, v))
        reach = np.where(kind % 0.5 < 0.25, reach, np.abs(reach - 0.8) + 0.8)
        cover = np.clip((1 - reach) * (0.1 * size), 0, 0.8)
        for plane, value in zip(planes, _colour(0.5 + 0.4 * level + 0.3 * (shift - 0.5), hue, 0.4 * strength), strict=True):
            plane += cover * (value - plane)
    return planes, level


def _draw(draw: Callable[[_Pen], None], keys: torch.Tensor, size: int) -> np.ndarray:
    """Images of one class: uint8 array of shape ``[keys, size, size, 3]``."""
    planes, ground = _background(keys, size)
    pen = _Pen(planes, keys, _colours(fold(keys, "colours"), ground))
    draw(pen)

    # one texture over the object, one light over everything, grain
    stripes, turn, phase, depth, light, aim, negative = _columns(fold(keys, "surface"), 7)
    angle, frequency = np.pi * turn, 5 + 13 * stripes
    wave = np.sin(frequency * (np.cos(angle) * pen.u + np.sin(angle) * pen.v) + 2 * np.pi * phase)
    texture = pen.mask * wave * (0.1 * depth)
    ramp = np.linspace(-1, 1, size, dtype=np.float32)
    shade = 1 + 0.3 * (light - 0.5) + 0.18 * (np.cos(2 * np.pi * aim) * ramp + np.sin(2 * np.pi * aim) * ramp[:, None])
    count = 3 * size * size
    grain = random_bits(fold(keys, "grain"), -(-count // 8)).numpy().view(np.uint8)[:, :count]
    grain = grain.reshape(len(keys), 3, size, size)
    noise = _columns(fold(keys, "noise"), 1)[0] * np.float32(0.08 / 255)

    image = np.empty((len(keys), size, size, 3), np.uint8)
    for channel, plane in enumerate(planes):
        value = plane + texture
        value = np.where(negative < NEG, 1 - value, value) * shade + noise * (grain[:, channel] - np.float32(127.5))
        image[..., channel] = np.clip(value, 0, 1) * 255 + 0.5
    return image


class ProceduralSource(Source):
    """The built-in images: ten classes of schematic objects; image ``i`` is a pure function of ``(seed, i)``.

    Image ``i`` belongs to class ``i % 10``, so the classes are balanced.

    Args:
        num_images: How many images there are.
        image_size: Height and width of each image in pixels, at least 16.
        seed: Another seed gives other images of the same classes.

    Raises:
        ValueError: If ``num_images`` or ``image_size`` is too small.
    """

    def __init__(self, num_images: int = 4000, image_size: int = 64, seed: int = 0) -> None:
        if num_images < 1:
            raise ValueError(f"ProceduralSource needs num_images >= 1, got {num_images}; ask for at least one image")
        if image_size < 16:
            raise ValueError(f"ProceduralSource needs image_size >= 16 pixels, got {image_size}; 64 shows all parts")
        self.num_images = num_images
        self.image_size = image_size
        self.seed = seed
        self.class_names = list(_OBJECTS)

    def __len__(self) -> int:
        return self.num_images

    def render(self, indices: Sequence[int] | np.ndarray | torch.Tensor) -> np.ndarray:
        """Draws many images at once, much faster than one by one.

        Args:
            indices: Numbers of images, in any order, each in ``0 .. num_images - 1``.

        Returns:
            uint8 array of shape ``[len(indices), image_size, image_size, 3]``.
        """
        numbers = torch.as_tensor(np.asarray(indices, dtype=np.int64))
        assert numbers.numel() == 0 or (int(numbers.min()) >= 0 and int(numbers.max()) < self.num_images)
        keys = fold(sample_keys(self.seed, 0, numbers), "procedural")
        images = np.empty((len(numbers), self.image_size, self.image_size, 3), np.uint8)
        objects = list(_OBJECTS.values())
        for label in (numbers % len(objects)).unique().tolist():
            members = torch.nonzero(numbers % len(objects) == label).squeeze(1)
            for chunk in members.split(_CHUNK):
                images[chunk.numpy()] = _draw(objects[label], keys[chunk], self.image_size)
        return images

    def read(self, index: int) -> NDArray[np.uint8]:
        return self.render([index])[0]

    def read_many(self, indices: Sequence[int]) -> list[NDArray[np.uint8] | BadImage]:
        return list(self.render(indices))

    def label(self, index: int) -> int:
        return index % len(_OBJECTS)

    def name(self, index: int) -> str:
        return f"{self.class_names[self.label(index)]}/{index:06d}"

    def fingerprint(self) -> str:
        """All that the pixels depend on: the arguments and the version of the drawings."""
        return f"procedural-v1-{self.num_images}-{self.image_size}-{self.seed}"
