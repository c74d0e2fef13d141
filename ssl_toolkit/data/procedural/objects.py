"""The ten objects: each is drawn upright, its parts in their places, within -1 and 1 to the right and downwards."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from ssl_toolkit.data.procedural.pen import Pen


def _house(pen: Pen) -> None:
    wide, eaves, top = pen.vary(0.55, 0.75), pen.vary(-0.25, 0.0), pen.vary(-0.95, -0.75)
    side = pen.vary(0.3, 0.45)
    pen.fill(pen.box(side, eaves - 0.45, 0.11, 0.35), pen.accent)
    pen.fill(pen.box(0, (0.9 + eaves) / 2, wide, (0.9 - eaves) / 2), pen.main)
    pen.fill(pen.polygon((-wide - 0.2, eaves), (0, top), (wide + 0.2, eaves)), pen.second)
    pen.fill(pen.box(-0.25, 0.62, pen.vary(0.12, 0.18), 0.29), pen.accent)
    window = pen.vary(0.13, 0.19)
    pen.fill(pen.box(0.28, 0.35, window, window), pen.second)
    pen.fill(np.minimum(pen.box(0.28, 0.35, 0.03, window), pen.box(0.28, 0.35, window, 0.03)), pen.main, False)


def _tree(pen: Pen) -> None:
    wide, low = pen.vary(0.32, 0.42), pen.vary(-0.05, 0.1)
    pen.fill(pen.polygon((-0.1, 0), (0.1, 0), (pen.vary(0.12, 0.22), 0.95), (-0.17, 0.95)), pen.second)
    crown = np.minimum(pen.circle(-0.42, low, wide), pen.circle(0.42, low, wide))
    pen.fill(np.minimum(crown, pen.circle(0, -0.45, pen.vary(0.45, 0.52))), pen.main)
    for x, y in ((-0.4, 0.05), (0.35, 0.0), (0.05, -0.6), (-0.05, -0.15)):
        pen.fill(pen.circle(x + pen.vary(-0.1, 0.1), y, 0.09), pen.accent, False)


def _fish(pen: Pen) -> None:
    height, tail = pen.vary(0.38, 0.52), pen.vary(0.35, 0.55)
    pen.fill(pen.polygon((0.3, 0), (0.95, -tail), (0.8, 0)), pen.second)
    pen.fill(pen.polygon((0.3, 0), (0.8, 0), (0.95, tail)), pen.second)
    pen.fill(pen.polygon((-0.35, -0.3), (pen.vary(0.0, 0.25), -0.75), (0.25, -0.2)), pen.second)
    pen.fill(pen.ellipse(-0.2, 0, 0.72, height), pen.main)
    pen.fill(np.maximum(pen.ellipse(-0.2, 0, 0.68, height - 0.04), np.abs(pen.u + 0.3) - 0.05), pen.second, False)
    pen.fill(pen.polygon((-0.1, 0.08), (0.25, 0.2), (0.1, pen.vary(0.3, 0.42))), pen.accent)
    pen.fill(pen.circle(-0.6, -0.1, 0.11), pen.accent)
    pen.fill(pen.circle(-0.62, -0.1, 0.05), pen.outline, False)


def _car(pen: Pen) -> None:
    roof, wheel, front = pen.vary(-0.55, -0.4), pen.vary(0.2, 0.27), pen.vary(-0.45, -0.3)
    cabin = pen.polygon((-0.65, 0.05), (front, roof), (0.4, roof), (0.68, 0.05))
    pen.fill(np.minimum(cabin, pen.box(0, 0.25, 0.95, 0.25)), pen.main)
    pen.fill(
        pen.polygon((-0.48, 0.02), (front + 0.08, roof + 0.1), (-0.04, roof + 0.1), (-0.04, 0.02)), pen.second, False
    )
    pen.fill(pen.polygon((0.06, 0.02), (0.06, roof + 0.1), (0.33, roof + 0.1), (0.5, 0.02)), pen.second, False)
    pen.fill(pen.box(-0.85, 0.2, 0.08, 0.07), pen.accent, False)
    for x in (-0.5, 0.5):
        pen.fill(pen.circle(x, 0.5, wheel), pen.accent)
        pen.fill(pen.circle(x, 0.5, 0.09), pen.second, False)


def _cup(pen: Pen) -> None:
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


def _face(pen: Pen) -> None:
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


def _bird(pen: Pen) -> None:
    head, tail = pen.vary(-0.55, -0.4), pen.vary(-0.35, 0.1)
    legs = np.minimum(pen.line(-0.05, 0.5, -0.1, 0.92, 0.035), pen.line(0.2, 0.5, 0.17, 0.92, 0.035))
    feet = np.minimum(pen.line(-0.1, 0.92, -0.28, 0.92, 0.035), pen.line(0.17, 0.92, 0.0, 0.92, 0.035))
    pen.fill(np.minimum(legs, feet), pen.accent)
    pen.fill(pen.polygon((0.3, 0.1), (0.9, tail), (1.0, tail + 0.25), (0.4, 0.35)), pen.second)
    pen.fill(pen.polygon((-0.95, head + 0.08), (-0.6, head - 0.1), (-0.6, head + 0.14)), pen.accent)
    body = pen.ellipse(0.08, 0.22, pen.vary(0.5, 0.6), 0.38)
    pen.fill(
        np.minimum(np.minimum(body, pen.circle(-0.42, head, 0.28)), pen.line(-0.35, head, -0.15, 0.2, 0.2)), pen.main
    )
    pen.fill(np.maximum(pen.ellipse(0.2, 0.12, 0.4, pen.vary(0.24, 0.32)), 0.05 - pen.v), pen.second)
    pen.fill(pen.circle(-0.48, head - 0.05, 0.065), pen.outline, False)


def _key(pen: Pen) -> None:
    radius, thick = pen.vary(0.32, 0.42), pen.vary(0.09, 0.13)
    shaft = pen.box(0, 0.35, 0.09, 0.6)
    teeth = np.minimum(pen.box(0.22, pen.vary(0.8, 0.86), 0.2, 0.08), pen.box(0.2, pen.vary(0.5, 0.6), 0.15, 0.07))
    pen.fill(np.minimum(shaft, teeth), pen.main)
    pen.fill(np.abs(pen.circle(0, -0.5, radius)) - thick, pen.second)
    pen.fill(pen.box(0, 0.0, 0.2, 0.07), pen.accent)


def _boat(pen: Pen) -> None:
    deck, top = pen.vary(0.32, 0.45), pen.vary(-0.85, -0.7)
    pen.fill(pen.box(0, -0.2, 0.05, 0.7), pen.main)
    pen.fill(pen.polygon((0.05, -0.95), (pen.vary(0.25, 0.4), -0.87), (0.05, -0.79)), pen.accent, False)
    pen.fill(pen.polygon((0.1, top), (pen.vary(0.6, 0.85), deck - 0.12), (0.1, deck - 0.12)), pen.second)
    pen.fill(pen.polygon((-0.1, top + 0.2), (-0.1, deck - 0.12), (pen.vary(-0.7, -0.5), deck - 0.12)), pen.accent)
    pen.fill(pen.polygon((-0.95, deck), (0.95, deck), (0.6, 0.9), (-0.6, 0.9)), pen.main)
    for x in (-0.4, 0, 0.4):
        pen.fill(pen.circle(x, deck + 0.22, 0.085), pen.second, False)


def _flower(pen: Pen) -> None:
    y, spread, petal = pen.vary(-0.4, -0.25), pen.vary(0.34, 0.4), pen.vary(0.2, 0.27)
    pen.fill(pen.line(0, y, pen.vary(-0.1, 0.1), 0.95, 0.055), pen.second)
    pen.fill(pen.ellipse(-0.3, pen.vary(0.5, 0.7), 0.3, 0.13), pen.second)
    pen.fill(pen.ellipse(0.3, pen.vary(0.4, 0.75), 0.3, 0.13), pen.second)
    turn = pen.vary(0, 2 * math.pi)
    angles = [turn + 0.4 * math.pi * k for k in range(5)]
    petals = [pen.circle(spread * np.cos(angle), y + spread * np.sin(angle), petal) for angle in angles]
    pen.fill(np.minimum.reduce(petals), pen.main)
    pen.fill(pen.circle(0, y, 0.19), pen.accent)


OBJECTS: dict[str, Callable[[Pen], None]] = {
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
