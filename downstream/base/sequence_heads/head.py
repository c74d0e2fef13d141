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
    """

    blind_to_order: ClassVar[bool] = False

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
