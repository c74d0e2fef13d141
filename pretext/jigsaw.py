"""Jigsaw: classify the permutation of an image's patches.

Noroozi, Favaro: "Unsupervised learning of visual representations by solving jigsaw puzzles", ECCV 2016, arXiv
1603.09246.
"""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pretext.base import GridTask
from pretext.base.grid import GRID
from ssl_toolkit.batch import Images
from ssl_toolkit.losses import full_precision, soft_cross_entropy
from ssl_toolkit.modules import mlp
from ssl_toolkit.random import fold_in, integers
from ssl_toolkit.step import StepContext, StepOutput


class Puzzle(NamedTuple):
    """Jigsaw puzzles of a batch.

    Attributes:
        patches: In the order in which they have been laid out: ``[batch, 9, channels, patch_size, patch_size]``.
        order: int64 tensor of shape ``[batch]``: the number of the permutation.
    """

    patches: Tensor
    order: Tensor


class Jigsaw(GridTask):
    """Jigsaw: classifies the permutation of the patches of a 3x3 grid (Noroozi and Favaro 2016).

    Each patch passes through the backbone once, by itself (the context-free network of section 3.2); the features of
    all nine are classified together.

    Args:
        num_permutations: How many, at least 2 and at most 1,000 (the paper: 1,000 of the 362,880; its table 6 has 64
            to 1,000). They are as unlike each other as can be, see `far_permutations`.
        patch_width: To how many numbers the features of a patch are reduced before all nine are put together.
        hidden_width: Width of the classifier's hidden layer.
        **kwargs: See `pretext.base.GridTask` and `ssl_toolkit.task.Task`.
    """

    permutations: Tensor

    def __init__(
        self, *, num_permutations: int = 100, patch_width: int = 128, hidden_width: int = 512, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        if not 2 <= num_permutations <= 1000:
            raise ValueError(f"model.num_permutations is {num_permutations}, expected 2 to 1,000")
        # without a bias, which the normalisation of the classifier's hidden layer would take away again
        self.reduce = mlp([self.backbone.num_features, patch_width], last_bias=False)
        self.classifier = mlp([GRID**2 * patch_width, hidden_width, num_permutations])
        self.register_buffer("permutations", far_permutations(num_permutations), persistent=False)

    def initial_loss(self, batch_size: int) -> float:
        """Each permutation is as likely: ln K."""
        return math.log(len(self.permutations))

    def make_views(self, images: Images, keys: Tensor) -> Puzzle:
        """The patches of each image, laid out by a permutation that is drawn for it."""
        order = integers(fold_in(keys, "permutation"), 0, len(self.permutations))
        places = self.permutations[order][:, :, None, None, None]
        patches = self.make_patches(images, keys)
        return Puzzle(patches.take_along_dim(places, dim=1), order)

    def view_pictures(self, views: Puzzle) -> Tensor:
        """The patches as they have been laid out."""
        return views.patches

    def loss(self, views: Puzzle, context: StepContext) -> StepOutput:
        """Cross entropy over the permutations; ``permutation_top1`` is the accuracy (chance: one over their number)."""
        features = self.backbone(views.patches.flatten(0, 1))
        together = self.reduce(features).unflatten(0, views.patches.shape[:2]).flatten(1)
        logits = full_precision(self.classifier(together))
        targets = context.soften(views.order)
        top1 = (logits.detach().argmax(dim=1) == targets.heaviest).float().mean()
        return StepOutput(soft_cross_entropy(logits, targets), features, {"permutation_top1": top1})


@functools.cache
def far_permutations(num: int, size: int = GRID**2) -> Tensor:
    """Permutations of large Hamming distance, always the same (Noroozi and Favaro 2016, algorithm 1).

    Beginning with the identity, each next one is the first of those with the greatest mean Hamming distance to the ones
    before it.

    Args:
        num: How many.
        size: Of how many things.

    Returns:
        int64 tensor of shape ``[num, size]``.
    """
    numbers = itertools.chain.from_iterable(itertools.permutations(range(size)))
    places = np.fromiter(numbers, np.int8, size * math.factorial(size)).reshape(-1, size).T.copy()
    distance = np.zeros(places.shape[1], dtype=np.int32)  # the sum over those chosen so far
    chosen = [0]
    while len(chosen) < num:
        for place in places:
            distance += place != place[chosen[-1]]
        distance[chosen[-1]] = -(2**30)
        chosen.append(int(distance.argmax()))
    return torch.from_numpy(places[:, chosen].T.astype(np.int64))
