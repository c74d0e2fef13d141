"""Sequence classification: the backbone sees each frame, a head reads the features in order.

The padding that brings the sequences of a batch to one length never reaches a result: recurrent heads run on packed
sequences, the Transformer head masks it, so each sequence gets the answer that it would get alone.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, cast

import torch
from lightning import LightningDataModule
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_sequence

from downstream.base import Classifier
from ssl_toolkit.batch import Images
from ssl_toolkit.data.frames import FrameData, SequenceBatch
from ssl_toolkit.errors import counted, nearest
from ssl_toolkit.modules.multiplicative import MultiplicativeInteraction
from ssl_toolkit.step import StepContext, StepOutput

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int64

RECURRENT = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}


class FrameFeatures(NamedTuple):
    """The features of the frames of a batch of sequences.

    Attributes:
        padded: Float tensor of shape ``[batch, longest, num_features]``; zero where a sequence has ended.
        lengths: int64 tensor of shape ``[batch]``: the number of frames of each sequence, at least 1.
    """

    padded: Tensor
    lengths: Tensor


class PairFeatures(NamedTuple):
    """The features of a batch of pairs of images: float tensors of shape ``[batch, num_features]``.

    Attributes:
        first: Of the first images.
        second: Of the second ones.
    """

    first: Tensor
    second: Tensor


def padding_mask(lengths: Int64[Tensor, " batch"], longest: int) -> Bool[Tensor, "batch longest"]:
    """Padding mask: bool tensor of shape ``[batch, longest]``, True where a sequence of the given length has ended."""
    return torch.arange(longest, device=lengths.device) >= lengths.unsqueeze(1)


class SequenceHead(nn.Module, ABC):
    """Base class of sequence heads: from the features of frames to the scores of classes."""

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


class RecurrentHead(SequenceHead):
    """Recurrent head: reads the frames one by one; the final state of the last layer gives the class.

    LSTM: Hochreiter and Schmidhuber, "Long short-term memory", 1997. GRU: Cho et al. 2014, arXiv 1406.1078.

    Args:
        kind: "rnn" (tanh units), "lstm" or "gru".
        hidden: Width of the state, at least 1.
        num_layers: Layers on top of each other, at least 1.
        bidirectional: Whether a second network reads each sequence from its end; the two states are concatenated.
        dropout: Probability in [0, 1) of dropping an input of a layer after the first, or of the classifier.
    """

    def __init__(
        self,
        kind: Literal["rnn", "lstm", "gru"] = "lstm",
        hidden: int = 256,
        num_layers: int = 1,
        bidirectional: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if kind not in RECURRENT:
            raise ValueError(f"RecurrentHead: kind is {kind!r}, expected rnn, lstm or gru{nearest(kind, RECURRENT)}")
        if hidden < 1 or num_layers < 1:
            raise ValueError(f"RecurrentHead needs hidden and num_layers of at least 1, got {hidden} and {num_layers}")
        self.kind = kind
        self.hidden = hidden
        self.num_layers = num_layers
        self.num_directions = 2 if bidirectional else 1
        self.dropout = nn.Dropout(dropout)

    def build(self, num_features: int, num_classes: int) -> None:
        self.recurrent = RECURRENT[self.kind](
            num_features,
            self.hidden,
            num_layers=self.num_layers,
            batch_first=True,
            bidirectional=self.num_directions == 2,
            # torch drops between layers only and warns where there is nothing between
            dropout=self.dropout.p if self.num_layers > 1 else 0.0,
        )
        self.classifier = nn.Linear(self.num_directions * self.hidden, num_classes)

    def forward(
        self, features: Float[Tensor, "batch longest width"], lengths: Int64[Tensor, " batch"]
    ) -> Float[Tensor, "batch classes"]:
        packed = pack_padded_sequence(features, lengths.cpu(), batch_first=True, enforce_sorted=False)
        _, state = self.recurrent(packed)
        if self.kind == "lstm":
            state, _ = state
        # [num_layers * num_directions, batch, hidden]: the last entries are the directions of the last layer
        final = torch.cat(list(state[-self.num_directions :]), dim=1)
        return self.classifier(self.dropout(final))


class TransformerHead(SequenceHead):
    """Transformer head: a pre-norm encoder over the frames (Vaswani et al. 2017, arXiv 1706.03762).

    Args:
        dim: Width of the tokens; a multiple of ``num_heads``, and even.
        num_layers: Encoder layers, at least 1.
        num_heads: Attention heads.
        positions: "sinusoidal" (Vaswani et al. 2017, section 3.5; any length) or "learned" (up to ``max_frames``).
        pooling: "cls" (a learned token that joins each sequence) or "mean" (of the tokens of the frames).
        max_frames: The longest sequence that learned positions can take; sinusoidal positions do not use it.
        dropout: Probability in [0, 1) of dropping a unit in the encoder and before the classifier.
    """

    def __init__(
        self,
        dim: int = 256,
        num_layers: int = 2,
        num_heads: int = 4,
        positions: Literal["sinusoidal", "learned"] = "sinusoidal",
        pooling: Literal["cls", "mean"] = "cls",
        max_frames: int = 512,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if dim % 2 or dim % num_heads:
            raise ValueError(
                f"TransformerHead needs an even dim that num_heads divides, got dim={dim} and num_heads={num_heads}"
            )
        self.dim = dim
        self.num_layers = num_layers
        self.num_heads = num_heads
        self.positions = positions
        self.pooling = pooling
        self.max_frames = max_frames
        self.dropout = nn.Dropout(dropout)

    def build(self, num_features: int, num_classes: int) -> None:
        self.project = nn.Linear(num_features, self.dim)
        layer = nn.TransformerEncoderLayer(
            self.dim, self.num_heads, 4 * self.dim, self.dropout.p, "gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(
            layer, self.num_layers, norm=nn.LayerNorm(self.dim), enable_nested_tensor=False
        )
        if self.pooling == "cls":
            self.cls_token = nn.Parameter(0.02 * torch.randn(1, 1, self.dim))
        if self.positions == "learned":
            self.position_table = nn.Parameter(0.02 * torch.randn(1, self.max_frames, self.dim))
        self.classifier = nn.Linear(self.dim, num_classes)

    def forward(
        self, features: Float[Tensor, "batch longest width"], lengths: Int64[Tensor, " batch"]
    ) -> Float[Tensor, "batch classes"]:
        padding = padding_mask(lengths, features.shape[1])
        # attention gives padding the weight 0, and 0 times infinity would still be NaN
        tokens = self.project(features.masked_fill(padding.unsqueeze(2), 0.0))
        tokens = tokens + self._positions(features.shape[1], tokens)
        if self.pooling == "cls":
            tokens = torch.cat([self.cls_token.expand(len(tokens), 1, self.dim), tokens], dim=1)
            padding = torch.cat([padding.new_zeros(len(padding), 1), padding], dim=1)
        tokens = self.encoder(self.dropout(tokens), src_key_padding_mask=padding)
        if self.pooling == "cls":
            pooled = tokens[:, 0]
        else:
            pooled = tokens.masked_fill(padding.unsqueeze(2), 0.0).sum(dim=1) / lengths.unsqueeze(1)
        return self.classifier(self.dropout(pooled))

    def _positions(self, num: int, like: Tensor) -> Tensor:
        """The codes of the first ``num`` places: float tensor of shape ``[1, num, dim]``."""
        if self.positions == "sinusoidal":
            return sinusoidal_positions(num, self.dim).to(like).unsqueeze(0)
        if num > self.max_frames:
            raise ValueError(
                f"a sequence has {num} frames, but the learned positions end at max_frames={self.max_frames}: "
                "raise the head's max_frames, lower the data's max_frames, or use positions: sinusoidal"
            )
        return self.position_table[:, :num]


class PairHead(SequenceHead):
    """Pair head: compares two images, the first with the second, by products of their features.

    The scores are quadratic forms of the two (`ssl_toolkit.modules.multiplicative.MultiplicativeInteraction`): they can
    tell whether two images are alike, which a sum of a term of each cannot. Sequences of exactly two frames are what a
    table with a second image gives (``data.columns.second``).

    Args:
        rank: Of these forms, at least 1; None for full ones, with the square of the number of features for each class.
        dropout: Probability in [0, 1) of dropping a feature.
    """

    def __init__(self, rank: int | None = None, dropout: float = 0.0) -> None:
        super().__init__()
        if rank is not None and rank < 1:
            raise ValueError(f"PairHead: rank is {rank}, expected at least 1")
        self.rank = rank
        self.dropout = nn.Dropout(dropout)

    def build(self, num_features: int, num_classes: int) -> None:
        self.classifier = MultiplicativeInteraction(num_features, num_features, num_classes, self.rank)

    def forward(
        self, features: Float[Tensor, "batch longest width"], lengths: Int64[Tensor, " batch"]
    ) -> Float[Tensor, "batch classes"]:
        if (other := lengths[lengths != 2]).numel():
            raise ValueError(
                f"PairHead compares two images, but a sequence has {counted(int(other[0]), 'frames')}: name a column "
                "of second images with --data.columns.second, or take another head"
            )
        return self.compare(PairFeatures(*features[:, :2].unbind(1)))

    def compare(self, features: PairFeatures) -> Float[Tensor, "batch classes"]:
        """Scores pairs: float tensor of shape ``[batch, num_classes]``."""
        first, second = self.dropout(torch.stack(features, dim=1)).unbind(1)
        return self.classifier(first, second)


def sinusoidal_positions(num: int, dim: int) -> Float[Tensor, "num dim"]:
    """Sinusoidal position encodings: sines and cosines of geometric wavelengths (Vaswani et al. 2017, section 3.5).

    Args:
        num: Places, counted from 0.
        dim: Width of a code, even.

    Returns:
        float32 tensor of shape ``[num, dim]``: ``sin(p / 10000^(2i / dim))`` in the even columns 2i, the cosine of the
        same angle in the odd columns 2i + 1.
    """
    rates = torch.exp(-math.log(10000.0) * torch.arange(0, dim, 2) / dim)
    angles = torch.arange(num).unsqueeze(1) * rates
    return torch.stack([angles.sin(), angles.cos()], dim=2).reshape(num, dim)


class SequenceClassification(Classifier):
    """Sequence classification by the features of the frames, in order.

    Args:
        head: What reads the features of the frames: `RecurrentHead` or `TransformerHead`, or of pairs of images
            `PairHead`.
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
        flat = self.standardize(self.backbone_features(batch.frames, keys.repeat_interleave(batch.lengths)))
        return FrameFeatures(pad_sequence(list(flat.split(batch.lengths.tolist())), batch_first=True), batch.lengths)

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

    def example_views(self, batch: SequenceBatch) -> Tensor:
        """The frames of each sequence: float tensor of shape ``[batch, longest, channels, height, width]``."""
        views = self.make_views(batch.frames, self.keys(batch).repeat_interleave(batch.lengths))
        return pad_sequence(list(views.split(batch.lengths.tolist())), batch_first=True)
