"""`FrameData`: the sequences of a run, their splits and their loaders."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from ssl_toolkit.data.checks import check_at_least_one, check_choice
from ssl_toolkit.data.console import say
from ssl_toolkit.data.dataset import ImageSet
from ssl_toolkit.data.frames.label_source import FrameLabelSource
from ssl_toolkit.data.frames.loader import SequenceLoader, SequenceSet
from ssl_toolkit.data.frames.moving_source import MovingObjectSource
from ssl_toolkit.data.frames.pairs import PairTableSource
from ssl_toolkit.data.frames.source import SequenceSource
from ssl_toolkit.data.frames.table_source import SequenceTableSource
from ssl_toolkit.data.loader import BatchLoader
from ssl_toolkit.data.module import ImageData
from ssl_toolkit.data.source_factory import check_apart, check_no_columns, check_one_path
from ssl_toolkit.data.splits import Split
from ssl_toolkit.distributed.ranks import is_rank_zero
from ssl_toolkit.errors import counted

Sampling = Literal["uniform", "clip"]
SequenceKind = Literal["folder", "procedural"]
_NAME_PAIRS = "name pairs with data.table, or put the two images of each into a folder of its own, named in their order"


class FrameData(ImageData):
    """Sequences of frames: ``path/class/sequence/frame_0001.jpg``, or ``path/class/sequence.npy``; or built-in ones.

    Frames are sorted so that frame_9 comes before frame_10. A file with a tensor (.npy, .safetensors, .pt) holds uint8
    ``[frames, height, width, channels]``. A frame that cannot be decoded is left out of its sequence.

    Args:
        path: The folder.
        batch_size: Sequences in a batch of each process.
        max_frames: The most frames of a sequence that are used, at least 1; None for all of them.
        sampling: How they are chosen from a longer sequence: "uniform" takes evenly spaced ones, always the same;
            "clip" takes consecutive ones, from a random place in training and from the middle in evaluation.
        table: A CSV, TSV or Parquet file that names the sequences of `path` (of its own folder, if there is none), a
            row each: a column "path" with a folder of frames or a file with a tensor, and where they are there "label",
            "split" and "group" (a patient's), as for images.
        columns: The names of these columns, where they are others. {weight: NAME} names one of weights; {start: NAME}
            and {end: NAME} the first frame of a part and the one after its last, as numbers in the order of the frames,
            from 0: one path may then have several rows, which are always in one split. {second: NAME} names a second
            image: each row is then the pair of the image files "path" and NAME, in this order.
        source: "folder", or "procedural": built-in sequences of eight frames, in which an object moves, turns, grows or
            shrinks, no files needed; the motion is the class
            (`ssl_toolkit.data.procedural.moving.MovingObjectFrames`).
        max_images: The number of the built-in sequences, 1,200 by default, 300 with `frame_labels`; of a folder all
            sequences are used.
        frame_labels: Whether each frame has a label, for `downstream.sequence_labelling.SequenceLabelling`. The rows of
            `table` then label segments of sequences (with {start: NAME} and {end: NAME} in `columns`), whole ones, or
            single frames (image files); what no row labels is left out of loss and figures. With the sampling "clip"
            evaluation takes whole sequences. Built-in sequences are longer ones of several motions.
        **kwargs: Arguments of `ImageData`, whose images are the sequences here.

    Raises:
        ValueError: An argument is out of its range, or the sequences cannot be found.
    """

    loader_class: ClassVar[type[BatchLoader]] = SequenceLoader
    noun: ClassVar[str] = "sequences"

    def __init__(
        self,
        path: str | None = None,
        batch_size: int = 16,
        max_frames: int | None = 32,
        sampling: Sampling = "uniform",
        table: str | None = None,
        columns: dict[str, str] | None = None,
        source: SequenceKind = "folder",
        max_images: int | None = None,
        frame_labels: bool = False,
        **kwargs: Any,
    ) -> None:
        check_at_least_one(max_frames=max_frames)
        check_choice("source", source, get_args(SequenceKind))
        check_choice("sampling", sampling, get_args(Sampling))
        for name in ("class_balance", "label_fraction", "labels_per_class") if frame_labels else ():
            if kwargs.get(name) not in (None, 1 if name == "label_fraction" else 0):
                advice = "; model.class_weights evens classes out" if name == "class_balance" else ""
                raise ValueError(
                    f"data.{name} goes by the class of a sequence, but with data.frame_labels each frame has its own: "
                    f"leave it out{advice}"
                )
        super().__init__(
            path=path,
            source=source,
            batch_size=batch_size,
            download=False,
            max_images=max_images,
            index=None,
            shard_window=None,
            shard_cache=1.0,
            table=table,
            columns=columns,
            targets=None,
            covariates=None,
            **kwargs,
        )
        self._max_frames = max_frames
        self._sampling = sampling
        self._only_pairs = False
        self.frame_labels = frame_labels

    def labels_of_frames(self, split: Split) -> Tensor:
        """int64 tensor: the label of each frame of the sequences of a split, in order; -1 where it is not known."""
        images, members = self._divided().split(split)
        labels = images.source.frame_labels_of(members)
        return torch.zeros(0, dtype=torch.int64) if labels is None else torch.from_numpy(labels)

    @property
    def draws_clips(self) -> bool:
        """Whether the frames that are used of a sequence change from epoch to epoch."""
        return self._sampling == "clip" and self._max_frames is not None

    def expect_pairs(self) -> None:
        """Takes sequences without a table as the pairs of images that a head compares: to be called at first.

        Each must have two frames, whatever ``max_frames`` is, and is left out if one of them cannot be decoded.
        """
        self._only_pairs = True

    def _open_sets(self) -> dict[str, ImageSet]:
        origin, options = self._origin, self._options
        evenly, clip = (self._max_frames, None) if self._sampling == "uniform" else (None, self._max_frames)
        if origin.source == "procedural":
            return {"train": self._open_built_in(evenly, clip)}
        if origin.max_images is not None:
            raise ValueError(
                "data.max_images is the number of built-in sequences: leave it out, or set data.source: procedural"
            )
        if origin.table is not None:
            check_one_path(origin, self.noun)
            columns, kind = dict(origin.columns), SequenceTableSource
            if self.frame_labels and self._reads_labels:
                source = FrameLabelSource(
                    origin.table, origin.path, options.image_size, options.channels, evenly, columns, origin.roles
                )
                if is_rank_zero():
                    say(source.summary())
                return {"train": self._set(source, clip)}
            if "second" in columns:
                kind = PairTableSource
                if self._max_frames == 1:
                    raise ValueError("data.max_frames is 1, but a pair has two images: set it to 2, or leave it out")
            source = kind(
                origin.table, origin.path, origin.labels, options.image_size, options.channels, evenly, columns,
                origin.roles,
            )  # fmt: skip
            if is_rank_zero():
                say(source.summary())
            return {"train": self._set(source, clip)}
        check_no_columns(origin)
        if self.frame_labels and self._reads_labels:
            raise ValueError(
                "data.frame_labels takes the labels of frames from a table: give data.table with the columns path, "
                "start, end and label, and --data.columns '{start: start, end: end}'"
            )
        if origin.path is None:
            raise ValueError("data.path is missing: give the folder of the sequences")
        check_apart(origin)
        sets: dict[str, ImageSet] = {}
        class_names = None
        for split, path in (("train", origin.path), ("val", origin.val_path), ("test", origin.test_path)):
            if path is not None:
                most = None if self._only_pairs else evenly
                try:
                    source = SequenceSource(
                        path, origin.labels, options.image_size, options.channels, most, class_names or None
                    )
                except ValueError as error:
                    if not self._only_pairs:
                        raise
                    raise ValueError(f"{error}; {_NAME_PAIRS}") from None
                if self._only_pairs:
                    _check_pairs(source, path)
                    source.needs_all = True
                class_names = class_names or source.class_names
                sets[split] = self._set(source, None if self._only_pairs else clip)
        return sets

    @property
    def _reads_labels(self) -> bool:
        return "label" in self._origin.roles

    def _set(self, source: SequenceSource, clip_frames: int | None) -> SequenceSet:
        return SequenceSet(
            source, self._options, is_rank_zero(), clip_frames=clip_frames, evaluates_clips=not self.frame_labels
        )

    def _open_built_in(self, max_frames: int | None, clip_frames: int | None) -> ImageSet:
        """The built-in sequences."""
        origin, options = self._origin, self._options
        for name in ("path", "val_path", "test_path", "table"):
            if getattr(origin, name) is not None:
                raise ValueError(f"data.{name} names sequences, but data.source is procedural: leave one of them out")
        check_no_columns(origin)
        if self._only_pairs:
            raise ValueError(f"the built-in sequences are no pairs of images; {_NAME_PAIRS}")
        if options.channels != 3:
            raise ValueError(f"data.channels is {options.channels}, but the built-in sequences have 3")
        source = MovingObjectSource(
            origin.max_images, options.image_size, origin.split_seed, max_frames, self.frame_labels
        )
        return self._set(source, clip_frames)


def _check_pairs(source: SequenceSource, path: str) -> None:
    wrong = np.flatnonzero(np.diff(source.starts) != 2)
    if len(wrong):
        first = int(wrong[0])
        num = int(source.starts[first + 1] - source.starts[first])
        raise ValueError(
            f"{counted(len(wrong), 'sequences')} of {len(source):,} in '{path}' {'is' if len(wrong) == 1 else 'are'} "
            f"no pair of images ({source.name(first)} has {counted(num, 'frames')}); {_NAME_PAIRS}"
        )
