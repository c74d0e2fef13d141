"""Sequence classification: the backbone sees each frame, a head reads the features in order.

The heads are those of `downstream.base.sequence_heads`.
"""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor

from downstream.base.sequence_heads import (
    AttentionPoolingHead,
    FrameFeatures,
    FrameHead,
    MultiStageTCNHead,
    PairFeatures,
    PairHead,
    PoolingHead,
    RecurrentHead,
    SequenceHead,
    TemporalConvHead,
    TransformerHead,
    padding_mask,
)
from downstream.base.sequence_task import SequenceTask
from ssl_toolkit.step import StepContext, StepOutput

__all__ = [
    "AttentionPoolingHead",
    "FrameHead",
    "MultiStageTCNHead",
    "PairHead",
    "PoolingHead",
    "RecurrentHead",
    "SequenceClassification",
    "SequenceHead",
    "TemporalConvHead",
    "TransformerHead",
]


class SequenceClassification(SequenceTask):
    """Sequence classification by the features of the frames, in order.

    Args:
        head: What reads the features of the frames: `RecurrentHead`, `TransformerHead` or `TemporalConvHead`; blind to
            their order `PoolingHead`, `AttentionPoolingHead` or `FrameHead`; of pairs of images `PairHead`.
        **kwargs: Arguments of `Classifier`.
    """

    def __init__(self, *, head: SequenceHead, **kwargs: Any) -> None:
        super().__init__(head=head, **kwargs)

    def setup(self, stage: str) -> None:
        """As in `Classifier`; refuses data where each frame has a label."""
        if getattr(self.data, "frame_labels", False):
            raise ValueError(
                "data.frame_labels gives each frame a label: SequenceClassification names the class of a sequence, "
                "downstream.sequence_labelling.SequenceLabelling those of its frames"
            )
        super().setup(stage)

    def logits(self, features: FrameFeatures | PairFeatures) -> Tensor:
        """The head's scores; those of pairs are of a `PairHead`."""
        if isinstance(features, PairFeatures):
            return cast(PairHead, self.head).compare(features)
        return self.head(features.padded, features.lengths)

    @property
    def exports_pairs(self) -> bool:
        """Whether an exported graph has two images: with a `PairHead`, or one that only adds to it."""
        return isinstance(self.head, PairHead) and type(self.head).forward is PairHead.forward

    @property
    def head_output_names(self) -> tuple[str, str] | None:
        """What the outputs of an exported graph are called; None where there is none, of sequences of any length."""
        return ("logits", "probabilities") if self.exports_pairs else None

    def pair_outputs(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Scores and probabilities of the classes of pairs: float tensors of shape ``[batch, num_classes]``.

        Args:
            first: Standardized features of the first images: float tensor of shape ``[batch, num_features]``.
            second: Of the second ones.
        """
        return self.head_outputs(PairFeatures(first, second))

    def loss(self, features: FrameFeatures, targets: Tensor, context: StepContext) -> StepOutput:
        """As in `Classifier`; the features given on are those of the frames, ``[num_frames, num_features]``."""
        padding = padding_mask(features.lengths, features.padded.shape[1])
        return super().loss(features, targets, context)._replace(features=features.padded[~padding])
