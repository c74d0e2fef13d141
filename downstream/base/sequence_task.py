"""`SequenceTask`: the base class of tasks whose backbone sees each frame; a head reads the features in order."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from downstream.base.classifier import Classifier
from downstream.base.sequence_heads import FrameFeatures, SequenceHead
from ssl_toolkit.batch import Images
from ssl_toolkit.data.frames import FrameData, SequenceBatch


class SequenceTask(Classifier):
    """Base class of tasks that classify sequences, or the frames of sequences.

    Args:
        head: What reads the features of the frames.
        **kwargs: Arguments of `Classifier`.
    """

    data_class: ClassVar[type[LightningDataModule]] = FrameData
    takes_covariates = False
    traits = Classifier.traits | {"several_rows", "sequences"}

    def __init__(self, *, head: SequenceHead, **kwargs: Any) -> None:
        super().__init__(covariates=None, covariate_rank=None, **kwargs)
        self.head = head

    def build_head(self, num_features: int) -> None:
        """Makes the layers of the head."""
        assert self.num_classes is not None
        self.head.build(num_features, self.num_classes)

    def encode(self, batch: SequenceBatch, keys: Tensor) -> FrameFeatures:
        """The features of all frames; the frames of one sequence share its key, and with it crop, flip and colours.

        Args:
            batch: The sequences.
            keys: int64 tensor of shape ``[batch]``: one key for each sequence.
        """
        flat = self.standardize(self.cached_or_computed(batch, keys))
        return FrameFeatures(pad_sequence(list(flat.split(batch.lengths.tolist())), batch_first=True), batch.lengths)

    def row_keys(self, batch: SequenceBatch, keys: Tensor) -> Tensor:
        """The key of its sequence for each frame."""
        return keys.repeat_interleave(batch.lengths)

    def images_of(self, batch: SequenceBatch) -> Images:
        """All frames, of one sequence after the other."""
        return batch.frames

    def mixed_rows(self, batch: SequenceBatch, partners: Tensor) -> tuple[Tensor, Tensor]:
        """Each frame with the one at the same point of its sequence's partner, whose length may be another."""
        lengths = batch.lengths
        starts = lengths.cumsum(0) - lengths
        sequence = torch.arange(len(lengths), device=lengths.device).repeat_interleave(lengths)
        place = torch.arange(len(sequence), device=lengths.device) - starts[sequence]
        other = partners[sequence]
        return sequence, starts[other] + place * lengths[other] // lengths[sequence]

    def example_views(self, batch: SequenceBatch) -> Tensor:
        """The frames of each sequence: float tensor of shape ``[batch, longest, channels, height, width]``."""
        cached = self.cached_views(len(batch.indices))
        if cached is not None:
            return cached
        views = self.make_views(batch.frames, self.row_keys(batch, self.keys(batch)))
        return pad_sequence(list(views.split(batch.lengths.tolist())), batch_first=True)
