"""What the tests know of a method beside its class."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

BACKBONE = {"name": "resnet10t", "kwargs": {"stem_width": 8, "channels": [8, 8, 16, 16], "drop_path_rate": 0.1}}
# views of the textures in which their tint is of no help, and their orientation is kept
TEXTURE_VIEW = {"size": 32, "scale": [0.6, 1.0], "hflip": 0, "brightness": 0.8, "contrast": 0.8, "saturation": 0.8,
                "hue": 0.5, "grayscale": 0.5, "blur": 0}  # fmt: skip
# views of the drawings without colour, on which views do not agree at first
GREY_VIEW = {**TEXTURE_VIEW, "contrast": 0.4, "saturation": 0, "hue": 0, "grayscale": 1.0}
# a crop of a drawing, cut into nine patches
GRID_VIEW = {"size": 54, "scale": [0.8, 1.0], "ratio": [1, 1], "hflip": 0, "preset": "crop_and_flip"}


class Lesson(NamedTuple):
    """A training in which a pretext task learns something within 20 seconds of a core.

    Attributes:
        arguments: Of the task, as in a recipe.
        beats_chance: Says of the run's last metrics whether the task is good at its own game.
        better: By how much kNN's top-1 is at least above that of random weights, 0 to 1.
        images: ``textures`` (`texture_images`) or ``procedural`` (the built-in drawings).
        num: Of training images.
        steps: With AdamW and a cosine.
        batch_size: Of a step.
        lr: The largest learning rate.
        weight_decay: Of AdamW.
        stem_width: Of the network.
        stem: Of the network, as `ssl_toolkit.modules.Backbone` has it.
    """

    arguments: dict[str, Any]
    beats_chance: Callable[[dict[str, float]], bool]
    better: float
    images: str = "textures"
    num: int = 1800
    steps: int = 200
    batch_size: int = 128
    lr: float = 2e-3
    weight_decay: float = 0.05
    stem_width: int = 8
    stem: str = "standard"


class Method(NamedTuple):
    """A pretext or downstream task.

    Attributes:
        arguments: With which it is small enough to train in a second, as in a recipe; the backbone may be among them.
        lesson: How it learns something; every pretext task has one.
        task: The task's class, if the method is one of several ways to use it.
        rounding_grows: Its loss does not depend on some direction of its weights (the scale of an embedding, a key's
            bias in attention), so a gradient may be rounding and nothing else, of which Adam makes steps like others.
        learns_with: Arguments that replace others where it has to learn from 200 small batches of the built-in
            drawings (`tests/reliability/test_collapse.py`): ``arguments`` are made for equal figures in float32.
        data: Settings of the built-in images, or of the sequences, that it needs.
    """

    arguments: dict[str, Any]
    lesson: Lesson | None = None
    task: str | None = None
    rounding_grows: bool = False
    learns_with: dict[str, Any] | None = None
    data: dict[str, Any] | None = None
