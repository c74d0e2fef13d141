"""Dropout of units, channels or blocks of activations, in training."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch.nn.functional as F
from timm.layers import drop_block_2d
from torch import Tensor

from ssl_toolkit.regularization.base import Regularizer, check_probability, modules


class _Drop(Regularizer):
    """Dropout in the outputs of modules, in training; the rest is scaled up.

    Stochastic depth, which drops whole residual blocks, is an argument of the backbone: ``kwargs: {drop_path_rate:
    0.1}``.
    """

    shardable = True

    def __init__(self, probability: float, pattern: str) -> None:
        self.probability = check_probability(probability)
        self.pattern = pattern

    @abstractmethod
    def drop(self, output: Tensor) -> Tensor:
        """The output without what is dropped."""

    def prepare(self, task: Any) -> None:
        """Has the outputs changed."""

        def change(module: Any, inputs: Any, output: Tensor) -> Tensor | None:
            return self.drop(output) if module.training else None

        for module in modules(task, self.pattern):
            module.register_forward_hook(change)


class Dropout(_Drop):
    """Dropout of single values (Srivastava et al. 2014, JMLR 15, section 4).

    Args:
        probability: Of dropping a value, at least 0 and less than 1.
        pattern: Regular expression, searched in the names of the task's modules; their outputs are dropped
            (``^backbone$`` for the features, say).
    """

    def drop(self, output: Tensor) -> Tensor:
        """Drops values."""
        return F.dropout(output, self.probability)


class SpatialDropout(_Drop):
    """Dropout of whole channels of feature maps (Tompson et al. 2015, arXiv 1411.4280, section 3.2).

    Args:
        probability: Of dropping a channel, at least 0 and less than 1.
        pattern: Regular expression, searched in the names of the task's modules; their outputs, of shape
            ``[batch, channels, height, width]``, are dropped.
    """

    def drop(self, output: Tensor) -> Tensor:
        """Drops channels."""
        return F.dropout2d(output, self.probability)


class DropBlock(_Drop):
    """DropBlock: dropout of squares of feature maps, the same in all channels (Ghiasi, Lin, Le 2018, arXiv 1810.12890,
    algorithm 1).

    Args:
        probability: The fraction of a map that is dropped, at least 0 and less than 1.
        pattern: Regular expression, searched in the names of the task's modules; their outputs, of shape
            ``[batch, channels, height, width]``, are dropped.
        block_size: Side of a square, at least 1; a smaller map's own side.
    """

    def __init__(self, probability: float, pattern: str, block_size: int = 7) -> None:
        super().__init__(probability, pattern)
        if block_size < 1:
            raise ValueError(f"regularizers: block_size is {block_size}, expected at least 1")
        self.block_size = block_size

    def drop(self, output: Tensor) -> Tensor:
        """Drops squares."""
        return drop_block_2d(output, self.probability, self.block_size)
