"""Batches of sequences, from a store of decoded frames."""

from __future__ import annotations

from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ssl_toolkit.batch import Images
from ssl_toolkit.data.bad_files import BadFiles
from ssl_toolkit.data.dataset import ImageSet
from ssl_toolkit.data.decode import BadImage
from ssl_toolkit.data.frames.source import SequenceSource
from ssl_toolkit.data.index_store import IndexStore
from ssl_toolkit.data.loader import BatchLoader
from ssl_toolkit.data.store import Store
from ssl_toolkit.errors import counted
from ssl_toolkit.random import fold_in, sample_keys, uniform


class SequenceBatch(NamedTuple):
    """One batch of sequences.

    Attributes:
        frames: The frames of the first sequence in order, then those of the second, and so on.
        lengths: int64 tensor of shape ``[batch]``: the number of frames of each sequence, at least 1.
        indices: int64 tensor of shape ``[batch]``: the place of each sequence in its source.
        labels: int64 tensor of shape ``[batch]``: class numbers, -1 where there is no label.
        epoch: The epoch the batch belongs to, counted from 0.
        repeats: As in `Batch`.
        weights: As in `Batch`.
        places: int64 tensor of shape ``[num_frames]``: which of the source's frames each is (`SequenceSource.places`).
        frame_labels: int64 tensor of shape ``[num_frames]``: the class of each frame, -1 where it is not known; None
            where a sequence has one class.
    """

    frames: Images
    lengths: Tensor
    indices: Tensor
    labels: Tensor
    epoch: int
    repeats: Tensor | None = None
    weights: Tensor | None = None
    places: Tensor | None = None
    frame_labels: Tensor | None = None


class Gathered(NamedTuple):
    """The frames of some sequences.

    Attributes:
        frames: Those of one sequence after the other.
        lengths: int64 array of shape ``[batch]``: how many each sequence has; 0 where it is bad, and then what can be
            decoded of it is still among the frames.
        places: int64 array of shape ``[num_frames]``, beside the frames: their places among those of the source.
    """

    frames: Images
    lengths: NDArray[np.int64]
    places: NDArray[np.int64]


class SequenceStore(Store):
    """The decoded frames of sequences. Frames that cannot be decoded are left out of their sequence, or it with them.

    Args:
        source: The sequences.
        frames: The store of ``source.frames``.
        clip_frames: Longer sequences are cut to so many consecutive frames; None takes them whole.
        evaluates_clips: Whether that goes for evaluation, too.

    Attributes:
        frame_labels: Those of the source.
        bad: The sequences none of whose frames could be decoded; or one of whose could not, if the source needs all.
        frames: The store of the frames, with the bad frames.
    """

    def __init__(
        self, source: SequenceSource, frames: Store, clip_frames: int | None = None, evaluates_clips: bool = True
    ) -> None:
        self.frames = frames
        self.bad = BadFiles(len(source), max_bad=1.0, announce=False)
        self._source = source
        self._clip_frames = clip_frames
        self._evaluates_clips = evaluates_clips
        self.frame_labels = source.frame_labels
        lost = np.zeros(len(source.frames), dtype=bool)
        lost[list(frames.bad.found)] = True
        whether = np.logical_or if source.needs_all else np.logical_and
        for index in np.flatnonzero(whether.reduceat(lost[source.places], source.starts[:-1])):
            self._lose(int(index))

    def gather(self, indices: NDArray[np.int64]) -> tuple[Images, list[int]]:
        """The frames of the sequences, one after the other, and the places of those that have none."""
        frames, lengths, _ = self.gather_sequences(indices)
        missing = np.flatnonzero(lengths == 0)
        if len(missing) and self._source.needs_all:
            frames = self.gather_sequences(np.delete(indices, missing)).frames
        return frames, missing.tolist()

    def gather_sequences(self, indices: NDArray[np.int64], shifts: NDArray[np.float32] | None = None) -> Gathered:
        """The frames of a batch of sequences.

        Args:
            indices: int64 array of shape ``[batch]``.
            shifts: float32 array of shape ``[batch]``: where between the first possible place (0) and the last one (1,
                excluded) a clip begins; None in evaluation, for the middle.
        """
        starts, ends = self._source.starts[indices], self._source.starts[indices + 1]
        if self._clip_frames is not None and (shifts is not None or self._evaluates_clips):
            spare = np.maximum(0, ends - starts - self._clip_frames)
            begin = spare // 2 if shifts is None else np.floor(shifts * (spare + 1)).astype(np.int64)
            starts = starts + np.minimum(begin, spare)
            ends = np.minimum(ends, starts + self._clip_frames)
        counts = ends - starts
        firsts = np.cumsum(counts) - counts
        places = np.repeat(starts - firsts, counts) + np.arange(counts.sum())
        frames, missing = self.frames.gather(self._source.places[places])
        owners = np.repeat(np.arange(len(indices)), counts)
        lengths = counts - np.bincount(owners[missing], minlength=len(indices))
        if self._source.needs_all:
            lengths[lengths < counts] = 0
        for index in indices[lengths == 0]:
            self._lose(int(index))
        return Gathered(frames, lengths, np.delete(places, missing))

    def _lose(self, index: int) -> None:
        what = "one of its images cannot" if self._source.needs_all else "none of its frames can"
        self.bad.saw(index, BadImage(self._source.name(index), f"{what} be decoded"))


class FrameCounts(IndexStore):
    """Sequences without pixels: their batches have the right number of frames, of no pixels each.

    Args:
        known: int64 array: the numbers of the sequences that there is something of; others count as bad.
        lengths: int64 array: how many frames each of these has.
        places: int64 array: the places of these frames, as in `Gathered`.
        frame_labels: Those of the source.
    """

    def __init__(
        self,
        known: NDArray[np.int64],
        lengths: NDArray[np.int64],
        places: NDArray[np.int64],
        frame_labels: NDArray[np.int64] | None,
    ) -> None:
        super().__init__(np.array([], dtype=np.int64))
        self._places = dict(zip(known.tolist(), np.split(places, np.cumsum(lengths)[:-1]), strict=True))
        self.frame_labels = frame_labels

    def gather_sequences(self, indices: NDArray[np.int64], shifts: NDArray[np.float32] | None = None) -> Gathered:
        """As `SequenceStore.gather_sequences`."""
        none = np.zeros(0, dtype=np.int64)
        places = [self._places.get(index, none) for index in indices.tolist()]
        lengths = np.array([len(each) for each in places], dtype=np.int64)
        frames, _ = self.gather(np.arange(lengths.sum()))
        return Gathered(frames, lengths, np.concatenate([none, *places]))


class SequenceSet(ImageSet):
    """Sequences together with the store of their decoded frames.

    Args:
        source: Where they come from.
        options: How frames are decoded and kept.
        is_rank_zero: Whether this process shows progress and names bad frames for all.
        clip_frames: As for `SequenceStore`.
        evaluates_clips: As for `SequenceStore`.

    Attributes:
        sequences: The source.
        frames: The frames of all sequences, as single images.
    """

    def __init__(
        self, source: SequenceSource, *arguments: Any, clip_frames: int | None = None, evaluates_clips: bool = True
    ) -> None:
        super().__init__(source, *arguments)
        self.sequences = source
        self.frames = ImageSet(source.frames, *arguments)
        self._clip_frames = clip_frames
        self._evaluates_clips = evaluates_clips

    @cached_property
    def store(self) -> SequenceStore:
        """The decoded frames; the first use may take as long as decoding them all."""
        return SequenceStore(self.sequences, self.frames.store, self._clip_frames, self._evaluates_clips)

    def subset(self, places: NDArray[np.int64]) -> ImageSet:
        """Refused: sequences cannot be left out of their source."""
        num = len(self.source) - len(places)
        raise ValueError(
            f"new since the run was begun: {counted(num, 'sequences')}; take them away, or begin a new run"
        )

    @property
    def bad_files(self) -> list[BadImage]:
        """The frames that could not be decoded, as far as is known."""
        return self.frames.bad_files


class SequenceLoader(BatchLoader):
    """Iterates over `SequenceBatch`es; order, splits over processes and state are those of `BatchLoader`.

    With ``shuffle`` (training) a clip begins at a place drawn by the seed, the epoch and the sequence; without it, in
    the middle.
    """

    _store: SequenceStore | FrameCounts

    def leave_out_pixels(self, known: NDArray[np.int64], lengths: NDArray[np.int64], places: NDArray[np.int64]) -> None:
        """As in `BatchLoader`; each sequence keeps the number of its frames and their labels."""
        self._store = FrameCounts(known, lengths, places, self._store.frame_labels)

    def _make(self, epoch: int, places: NDArray[np.int64]) -> Any:
        while len(places):
            indices = self._indices[places % len(self._indices)]
            chosen, repeats = torch.from_numpy(indices), self._repeats(places)
            keys = fold_in(sample_keys(self._seed, epoch, chosen, repeats), "clip")
            shifts = uniform(keys).numpy() if self._shuffle else None
            frames, lengths, numbers = self._store.gather_sequences(indices, shifts)
            if lengths.all():
                labels, weights = self._labels[chosen], None if self._weights is None else self._weights[chosen]
                of_frames = self._store.frame_labels
                return SequenceBatch(
                    frames, torch.from_numpy(lengths), chosen, labels, epoch, repeats, weights,
                    torch.from_numpy(numbers), None if of_frames is None else torch.from_numpy(of_frames[numbers]),
                )  # fmt: skip
            places = self._instead(places, np.flatnonzero(lengths == 0).tolist())
        return None
