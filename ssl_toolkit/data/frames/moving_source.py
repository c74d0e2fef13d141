"""The built-in sequences as a source of sequences."""

from __future__ import annotations

import numpy as np

from ssl_toolkit.data.frames.source import SequenceSource, evenly
from ssl_toolkit.data.procedural.motions import SeveralMotionFrames
from ssl_toolkit.data.procedural.moving import MOTIONS, NUM_FRAMES, MovingObjectFrames

NUM_SEQUENCES = 1200


class MovingObjectSource(SequenceSource):
    """Sequences of one moving object each, of eight classes (`MovingObjectFrames`, or `SeveralMotionFrames`).

    Args:
        num_sequences: At least 1; 1,200 by default, 300 with `frame_labels`.
        image_size: Height and width of a frame in pixels, at least 16.
        seed: Another seed gives other sequences of the same classes.
        max_frames: Keep only so many frames of each, evenly spaced; None keeps all.
        frame_labels: Sequences of several motions, where each frame has a class.
    """

    def __init__(
        self,
        num_sequences: int | None = None,
        image_size: int = 64,
        seed: int = 0,
        max_frames: int | None = None,
        frame_labels: bool = False,
    ) -> None:
        num = (NUM_SEQUENCES // 4 if frame_labels else NUM_SEQUENCES) if num_sequences is None else num_sequences
        if frame_labels:
            self._hold_several(num, image_size, seed, max_frames)
            return
        self.frames = MovingObjectFrames(num, image_size, seed)
        self.class_names = list(MOTIONS)
        self._names = [f"{MOTIONS[index % len(MOTIONS)]}/{index:06d}" for index in range(num)]
        self._sizes = [-1] * num
        self._labels = np.arange(num, dtype=np.int64) % len(MOTIONS)
        chosen = np.array(evenly(range(NUM_FRAMES), max_frames), dtype=np.int64)
        self.places = (np.arange(num, dtype=np.int64)[:, None] * NUM_FRAMES + chosen).reshape(-1)
        self.numbers = self.places % NUM_FRAMES
        self.starts = np.arange(num + 1, dtype=np.int64) * len(chosen)

    def _hold_several(self, num: int, image_size: int, seed: int, max_frames: int | None) -> None:
        self.frames = frames = SeveralMotionFrames(num, image_size, seed)
        self.class_names = list(MOTIONS)
        self._names = [f"{index:06d}" for index in range(num)]
        self._sizes = [-1] * num
        self._labels = None
        chosen = [
            np.array(evenly(range(first, end), max_frames), dtype=np.int64)
            for first, end in zip(frames.starts[:-1].tolist(), frames.starts[1:].tolist(), strict=True)
        ]
        self.places = np.concatenate(chosen)
        self.numbers = self.places - np.repeat(frames.starts[:-1], [len(each) for each in chosen])
        self.starts = np.cumsum([0, *map(len, chosen)]).astype(np.int64)
        self.frame_labels = frames.motions[self.places]
