"""Heads of sequences: what reads the features of frames in order.

The padding that brings the sequences of a batch to one length never reaches a result, so each sequence gets the answer
that it would get alone.
"""

from downstream.base.sequence_heads.convolution import TemporalConvHead
from downstream.base.sequence_heads.frame import FrameHead
from downstream.base.sequence_heads.head import FrameFeatures, SequenceHead, padding_mask
from downstream.base.sequence_heads.multi_stage import MultiStageTCNHead
from downstream.base.sequence_heads.pair import PairFeatures, PairHead
from downstream.base.sequence_heads.pooling import AttentionPoolingHead, PoolingHead
from downstream.base.sequence_heads.recurrent import RecurrentHead
from downstream.base.sequence_heads.transformer import TransformerHead, sinusoidal_positions

__all__ = [
    "AttentionPoolingHead",
    "FrameFeatures",
    "FrameHead",
    "MultiStageTCNHead",
    "PairFeatures",
    "PairHead",
    "PoolingHead",
    "RecurrentHead",
    "SequenceHead",
    "TemporalConvHead",
    "TransformerHead",
    "padding_mask",
    "sinusoidal_positions",
]
