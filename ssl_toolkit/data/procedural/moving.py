"""The built-in sequences: one object that moves, turns, grows or shrinks. The class is the motion."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from ssl_toolkit.data.decode import BadImage
from ssl_toolkit.data.procedural.colours import columns
from ssl_toolkit.data.procedural.masks import object_masks
from ssl_toolkit.data.procedural.objects import OBJECTS
from ssl_toolkit.data.procedural.pen import Pose
from ssl_toolkit.data.procedural.scene import draw_scenes
from ssl_toolkit.data.sources import Source
from ssl_toolkit.random import fold_in, sample_keys

# each beside the same one backwards: what changes, from the least to the most, and from the most to the least
MOTIONS = ("right", "left", "down", "up", "clockwise", "counterclockwise", "grows", "shrinks")
NUM_FRAMES = 8
_CHUNK = 32  # frames drawn at once, as for single images
_LEAST_CHANGE = 0.6  # of what is possible
_HALF, _ANGLE = (0.2, 0.34), (-0.7, 0.7)  # half of the object's side as a fraction of the image's, radians


class MovingObjectFrames(Source):
    """The frames of the built-in sequences, one sequence after the other.

    Sequence ``i`` has the class ``i % 8`` (`MOTIONS`) and is a pure function of ``(seed, i)``. One of place (two
    directions), angle and size changes evenly from frame to frame; the others stay at one of the values that they would
    go through, and the object's kind, its colours and the background are drawn without regard to the class. So a frame
    from anywhere in a sequence tells nothing of the class, and all frames without their order only which of the four it
    is that changes: a class backwards is another class. (The first frame by itself hints at the direction: what moves
    to the right begins on the left.)

    Args:
        num_sequences: At least 1.
        image_size: Height and width of a frame in pixels, at least 16.
        seed: Another seed gives other sequences of the same classes.

    Raises:
        ValueError: An argument is too small.
    """

    def __init__(self, num_sequences: int, image_size: int, seed: int = 0) -> None:
        if num_sequences < 1:
            raise ValueError(f"the built-in sequences are {num_sequences}; ask for at least one")
        if image_size < 16:
            raise ValueError(f"data.image_size is {image_size}; the built-in sequences need at least 16 pixels")
        self.num_sequences = num_sequences
        self.image_size = image_size
        self.seed = seed
        self.class_names = list(MOTIONS)

    def __len__(self) -> int:
        return self.num_sequences * NUM_FRAMES

    def render(self, indices: Sequence[int] | NDArray[np.int64]) -> NDArray[np.uint8]:
        """Draws many frames at once: uint8 array of shape ``[len(indices), image_size, image_size, 3]``."""
        images = np.empty((len(indices), self.image_size, self.image_size, 3), np.uint8)
        for chunk, draw_objects, keys, pose in self._chunks(indices):
            images[chunk] = draw_scenes(draw_objects, keys, self.image_size, pose)
        return images

    def masks(self, indices: Sequence[int] | NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which pixels the object covers: bool array of shape ``[len(indices), image_size, image_size]``."""
        masks = np.empty((len(indices), self.image_size, self.image_size), bool)
        for chunk, draw_objects, keys, pose in self._chunks(indices):
            masks[chunk] = object_masks(draw_objects, keys, self.image_size, pose)
        return masks

    def _chunks(self, indices: Sequence[int] | NDArray[np.int64]):
        """For frames that are drawn at once: their places, what draws their objects, their keys and their poses."""
        numbers = np.asarray(indices, dtype=np.int64)
        keys = self.keys(self.sequences_of(numbers))
        objects = list(OBJECTS.values())
        kinds = (columns(fold_in(keys, "kind"), 1)[0].reshape(-1) * len(objects)).astype(np.int64)
        order = np.argsort(kinds, kind="stable")
        for start in range(0, len(order), _CHUNK):
            chunk = order[start : start + _CHUNK]
            own = keys[torch.from_numpy(chunk)]
            yield chunk, [objects[kind] for kind in kinds[chunk]], own, self.poses(own, numbers[chunk])

    def keys(self, sequences: NDArray[np.int64]) -> torch.Tensor:
        """The key of each of some sequences: int64 tensor of shape ``[num]``."""
        return fold_in(sample_keys(self.seed, 0, torch.from_numpy(sequences)), "moving")

    def sequences_of(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """The sequence of each of some frames."""
        return indices // NUM_FRAMES

    def poses(self, keys: torch.Tensor, indices: NDArray[np.int64]) -> Pose:
        """The poses of some frames, from the keys of their sequences and their numbers."""
        sequences, frames = np.divmod(indices, NUM_FRAMES)
        return poses(keys, sequences % len(MOTIONS), frames)

    def read(self, index: int) -> NDArray[np.uint8]:
        return self.render([index])[0]

    def read_many(self, indices: Sequence[int]) -> list[NDArray[np.uint8] | BadImage]:
        return list(self.render(indices))

    def label(self, index: int) -> int:
        return index // NUM_FRAMES % len(MOTIONS)

    def name(self, index: int) -> str:
        return f"{MOTIONS[self.label(index)]}/{index // NUM_FRAMES:06d}[{index % NUM_FRAMES}]"

    def fingerprint(self) -> str:
        """All that the pixels depend on: the arguments and the version of the drawings."""
        return f"moving-v1-{self.num_sequences}-{self.image_size}-{self.seed}"


def poses(keys: torch.Tensor, motions: NDArray[np.int64], frames: NDArray[np.int64]) -> Pose:
    """The poses of frames.

    Args:
        keys: int64 tensor of shape ``[num]``: of the sequence of each frame.
        motions: int64 array of shape ``[num]``: their classes, places in `MOTIONS`.
        frames: int64 array of shape ``[num]``: their places in the sequences, from 0.
    """
    last = NUM_FRAMES - 1
    now = np.where(motions % 2 == 1, last - frames, frames)[:, None, None]
    changes = (motions // 2)[:, None, None]
    values = []
    for place, name in enumerate(("x", "y", "angle", "size")):
        start, change, rest = columns(fold_in(fold_in(keys, "motion"), name), 3)
        span = _LEAST_CHANGE + (1 - _LEAST_CHANGE) * change
        # what rests does so at one of its frames: a frame alone looks the same either way
        time = np.where(changes == place, now, np.floor(rest * NUM_FRAMES)) / last
        values.append((start * (1 - span) + span * time).astype(np.float32))
    return pose_of(keys, *values)


def pose_of(keys: torch.Tensor, x: np.ndarray, y: np.ndarray, angle: np.ndarray, size: np.ndarray) -> Pose:
    """The pose of objects of these places, angles and sizes, each an array of shape ``[num, 1, 1]`` in ``[0, 1]``."""
    stretch, width = columns(fold_in(keys, "form"), 2)
    half = _HALF[0] + (_HALF[1] - _HALF[0]) * size
    return Pose(half, x, y, _ANGLE[0] + (_ANGLE[1] - _ANGLE[0]) * angle, 0.9 + 0.2 * stretch, width)
