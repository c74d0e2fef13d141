"""`SequenceHead`: the base class of what reads the features of frames in order."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int64


class FrameFeatures(NamedTuple):
    """The features of the frames of a batch of sequences.

    Attributes:
        padded: Float tensor of shape ``[batch, longest, num_features]``; zero where a sequence has ended.
        lengths: int64 tensor of shape ``[batch]``: the number of frames of each sequence, at least 1.
    """

    padded: Tensor
    lengths: Tensor


def padding_mask(lengths: Int64[Tensor, " batch"], longest: int) -> Bool[Tensor, "batch longest"]:
    """Padding mask: bool tensor of shape ``[batch, longest]``, True where a sequence of the given length has ended."""
    return torch.arange(longest, device=lengths.device) >= lengths.unsqueeze(1)


class SequenceHead(nn.Module, ABC):
    """Base class of sequence heads: from the features of frames to the scores of classes.

    Attributes:
        blind_to_order: Whether the frames of a sequence get the same answer in any order.
        labels_frames: Whether it also scores each frame (`score_frames`).
        causal: Whether the scores of a frame depend on no frame after it.
    """

    blind_to_order: ClassVar[bool] = False
    labels_frames: ClassVar[bool] = False
    causal: bool = False

    @abstractmethod
    def build(self, num_features: int, num_classes: int) -> None:
        """Makes the layers, once the sizes of the input and of the output are known."""

    @abstractmethod
    def forward(
        self, features: Float[Tensor, "batch longest width"], lengths: Int64[Tensor, " batch"]
    ) -> Float[Tensor, "batch classes"]:
        """Scores each sequence.

        Args:
            features: Float tensor of shape ``[batch, longest, num_features]``. What lies beyond the length of a
                sequence is not read.
            lengths: int64 tensor of shape ``[batch]``, at least 1.

        Returns:
            Float tensor of shape ``[batch, num_classes]``.
        """

    def score_frames(
        self, features: Float[Tensor, "batch longest width"], lengths: Int64[Tensor, " batch"]
    ) -> list[Float[Tensor, "batch longest classes"]]:
        """Scores each frame, where `labels_frames` says so.

        Args:
            features: As for `forward`.
            lengths: As for `forward`.

        Returns:
            Float tensors of shape ``[batch, longest, num_classes]``, whose padding means nothing: one for each stage of
            a head that refines its answer, all of which are trained. The last one is the answer.
        """
        raise ValueError(f"{type(self).__name__} scores whole sequences, not each frame")
