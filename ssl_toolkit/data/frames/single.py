"""`SingleFrames`: the frames of sequences, as single images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from ssl_toolkit.data.dataset import ImageSet
from ssl_toolkit.data.divided import DividedData
from ssl_toolkit.data.frames.loader import SequenceSet
from ssl_toolkit.data.frames.module import FrameData
from ssl_toolkit.data.splits import Division, Fractions, Split


class SingleFrames(DividedData):
    """The frames of sequences, as single images: each is in the split of its sequence and has its label, or its own.

    Args:
        sequences: The sequences; `FrameData.batch_size` is a number of frames here.
    """

    noun: ClassVar[str] = "frames"

    def __init__(self, sequences: FrameData) -> None:
        super().__init__()
        self._sequences = sequences
        self.title = sequences.title
        self.batch_size = sequences.batch_size
        self.seed = sequences.seed
        self.max_bad = sequences.max_bad
        self.channels = sequences.channels
        self.image_size = sequences.image_size
        self.weighted = sequences.weighted

    @property
    def class_names(self) -> list[str]:
        """Those of the sequences."""
        return self._sequences.class_names

    def places(self, split: Split, indices: NDArray[np.int64]) -> tuple[list[str], NDArray[np.int64]]:
        """The sequence of each frame, and its place in it, counted from 0 among the frames that are used.

        Args:
            split: The split of the frames.
            indices: Their numbers in its source.
        """
        return self.places_in(self._divided().split(split).images, indices)

    def places_in(self, images: ImageSet, indices: NDArray[np.int64]) -> tuple[list[str], NDArray[np.int64]]:
        """As `places`, of one of `sources`."""
        sequences = self._owners[id(images)].sequences
        owners = np.searchsorted(sequences.starts, indices, side="right") - 1
        return [sequences.name(owner) for owner in owners.tolist()], indices - sequences.starts[owners]

    def range_from(self, header: Mapping[str, Any] | None) -> None:
        """As in `ImageData`."""
        self._sequences.range_from(header)

    def read_once(self) -> None:
        """As in `ImageData`."""
        self._sequences.read_once()

    def prepare_data(self) -> None:
        """As in `ImageData`."""
        self._sequences.prepare_data()

    def setup(self, stage: str | None = None) -> None:
        """As in `ImageData`."""
        self._sequences.setup(stage)

    def _divided(self) -> Division:
        if self._division is None:
            of_sequences = self._sequences._divided()
            main = of_sequences.split("train").images
            self._owners: dict[int, SequenceSet] = {}
            sets: dict[str, ImageSet] = {}
            parts = {name: np.zeros(0, dtype=np.int64) for name in get_args(Split)}
            for source in of_sequences.sources():
                assert isinstance(source.images, SequenceSet)
                lengths = np.diff(source.images.sequences.starts)
                splits = np.repeat(source.splits, lengths)
                own = {name: np.flatnonzero(splits == number) for number, name in enumerate(get_args(Split))}
                own = {name: members for name, members in own.items() if len(members)}
                frames, places = source.images.frames, source.images.sequences.places
                if not np.array_equal(places, np.arange(len(frames.source))):
                    frames = frames.subset(places)  # a frame of two sequences is one of each
                of_frames = source.images.sequences.frame_labels
                frames.labels = (
                    source.images.labels.repeat_interleave(torch.from_numpy(lengths))
                    if of_frames is None
                    else torch.from_numpy(of_frames)
                )
                self._owners[id(frames)] = source.images
                for name in ["train"] if source.images is main else own:
                    sets[name] = frames
                parts |= own
            fractions = Fractions(0.0, 0.0, 1.0, None, self.seed)
            self._division = Division(sets, parts, fractions, of_sequences.shares_source, of_sequences.survey)
        return self._division
