"""Built-in sequences of several motions, one after the other: each frame has the class of its motion."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from ssl_toolkit.data.procedural.moving import MovingObjectFrames, pose_of
from ssl_toolkit.data.procedural.pen import Pose
from ssl_toolkit.random import fold_in, uniform

_SEGMENTS, _FRAMES = (3, 5), (6, 12)  # of a sequence, of a segment
_SPEED = (0.06, 0.11)  # of what is possible, in a frame
_LEAST_ROOM = 0.35  # for what changes
_START = 4  # numbers of a sequence: where its place, angle and size begin


class SeveralMotionFrames(MovingObjectFrames):
    """The frames of sequences in which an object makes three to five motions, each in 6 to 12 frames.

    The motions and the object are those of `MovingObjectFrames`. Neighbouring motions change different things; each
    begins where the one before has ended, so that a frame alone tells next to nothing of its class.

    Args:
        num_sequences: At least 1.
        image_size: Height and width of a frame in pixels, at least 16.
        seed: Another seed gives other sequences.

    Attributes:
        starts: int64 array of shape ``[num_sequences + 1]``: the first frame of each sequence.
        motions: int64 array: the class of each frame, a place in `MOTIONS`.

    Raises:
        ValueError: An argument is too small.
    """

    def __init__(self, num_sequences: int, image_size: int, seed: int = 0) -> None:
        super().__init__(num_sequences, image_size, seed)
        keys = fold_in(self.keys(np.arange(num_sequences)), "several motions")
        drawn = uniform(keys, 1 + _START + 4 * _SEGMENTS[1]).double().numpy()
        made = [_motions(numbers) for numbers in drawn]
        self._values = np.concatenate([values for values, _ in made])
        self.motions = np.concatenate([labels for _, labels in made])
        self.starts = np.cumsum([0, *(len(labels) for _, labels in made)]).astype(np.int64)

    def __len__(self) -> int:
        return len(self.motions)

    def sequences_of(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """The sequence of each of some frames."""
        return np.searchsorted(self.starts, indices, side="right") - 1

    def poses(self, keys: torch.Tensor, indices: NDArray[np.int64]) -> Pose:
        """The poses of some frames, from the keys of their sequences and their numbers."""
        x, y, angle, size = self._values[indices].astype(np.float32).T[:, :, None, None]
        return pose_of(keys, x, y, angle, size)

    def label(self, index: int) -> int:
        return int(self.motions[index])

    def name(self, index: int) -> str:
        sequence = int(self.sequences_of(np.array([index]))[0])
        return f"{sequence:06d}[{index - self.starts[sequence]}]"

    def fingerprint(self) -> str:
        """All that the pixels depend on: the arguments and the version of the drawings."""
        return f"several-motions-v1-{self.num_sequences}-{self.image_size}-{self.seed}"


def _motions(numbers: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The values ``[frames, 4]`` of a sequence (x, y, angle, size), and the motion that leads to each frame."""
    first, state, drawn = numbers[0], numbers[1 : 1 + _START].copy(), numbers[1 + _START :].reshape(-1, 4)
    values, labels, changes = [], [], -1
    for what, way, length, speed in drawn[: _whole(first, _SEGMENTS)]:
        others = [place for place in range(_START) if place != changes]
        changes = others[int(what * len(others))]
        at = state[changes]
        grows = way < 0.5 if min(at, 1 - at) >= _LEAST_ROOM else at < 0.5
        frames = _whole(length, _FRAMES)
        step = min((1 - at if grows else at) / frames, _SPEED[0] + (_SPEED[1] - _SPEED[0]) * speed)
        for _ in range(frames):
            state[changes] += step if grows else -step
            values.append(state.copy())
            labels.append(2 * changes + (not grows))
    return np.clip(np.array(values), 0, 1), np.array(labels, dtype=np.int64)


def _whole(number: float, bounds: tuple[int, int]) -> int:
    """A whole number between two, both included, from one in [0, 1)."""
    return bounds[0] + int(number * (bounds[1] - bounds[0] + 1))
