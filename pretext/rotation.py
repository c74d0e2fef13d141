"""Rotation (RotNet): classify by how many quarter turns an image was rotated.

Gidaris, Singh, Komodakis: "Unsupervised representation learning by predicting image rotations", ICLR 2018, arXiv
1803.07728.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from pretext.base import PretextTask
from pretext.base.fill import check_no_fill
from pretext.base.task import rows_of_each
from ssl_toolkit.augment import RandomView
from ssl_toolkit.batch import Images
from ssl_toolkit.losses import full_precision, soft_cross_entropy, soften
from ssl_toolkit.modules import mlp
from ssl_toolkit.random import fold_in, integers
from ssl_toolkit.step import StepContext, StepOutput

ROTATIONS = 4


class Rotated(NamedTuple):
    """Rotated views of a batch.

    Attributes:
        views: ``[batch, num, channels, size, size]``, num of each image: 4 or 1.
        turns: int64 tensor of shape ``[batch, num]``: by how many quarter turns each is rotated, counter-clockwise.
    """

    views: Tensor
    turns: Tensor


class Rotation(PretextTask):
    """Rotation: classifies by 0, 90, 180 or 270 degrees an image was rotated (Gidaris et al. 2018, section 2).

    Quarter turns move pixels and compute none, so that no trace of a resize tells the answer (section 2.2).

    Args:
        view: How the image that is rotated is made. Mirroring left to right is fine: what is upright stays upright.
            Mirroring upside down and rotation are refused, since no answer is right then, and so are policies.
        rotations: ``all``: the network sees each view in all four rotations, as published; ``one``: in one, drawn for
            each image, for a quarter of the time.
        **kwargs: See `ssl_toolkit.task.Task`.
    """

    takes_soft_targets = True
    views_may_shrink = True
    traits = frozenset({"several_rows"})

    def __init__(self, *, view: RandomView, rotations: Literal["all", "one"] = "all", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if rotations not in ("all", "one"):
            raise ValueError(f"model.rotations is {rotations!r}, expected all or one")
        for name in ("rotation", "vflip"):
            if getattr(view, name):
                raise ValueError(
                    f"model.view.{name} changes which side is up, so that no answer is right; leave it out"
                )
        # a sheared image has its widest empty corner always at the bottom or at the right
        check_no_fill(view, ["policy"], "the rotation")
        self.view = view
        self.rotations = rotations
        self.classifier = mlp([self.backbone.num_features, ROTATIONS])

    def initial_loss(self, batch_size: int) -> float:
        """Each rotation is as likely: ln 4."""
        return math.log(ROTATIONS)

    def make_views(self, images: Images, keys: Tensor) -> Rotated:
        """The view of each image in all rotations, or in the one that is drawn for it."""
        upright = self.view(images, fold_in(keys, "view"))
        views = torch.stack([upright.rot90(turns, dims=(2, 3)) for turns in range(ROTATIONS)], dim=1)
        if self.rotations == "all":
            return Rotated(views, torch.arange(ROTATIONS, device=keys.device).expand(len(keys), -1))
        turns = integers(fold_in(keys, "rotation"), 0, ROTATIONS, 1)
        return Rotated(views.take_along_dim(turns[:, :, None, None, None], dim=1), turns)

    def view_pictures(self, views: Rotated) -> Tensor:
        """The rotated views."""
        return views.views

    def mixed_rows(self, batch: Any, partners: Tensor) -> tuple[Tensor, Tensor]:
        """Each rotation of an image with the same rotation of its partner, or the one with the one."""
        return rows_of_each(partners, ROTATIONS if self.rotations == "all" else 1)

    def loss(self, views: Rotated, context: StepContext) -> StepOutput:
        """Cross entropy over the four rotations; ``rotation_top1`` is the accuracy (chance: 0.25)."""
        features = self.backbone(views.views.flatten(0, 1))
        logits, turns = full_precision(self.classifier(features)), views.turns.flatten()
        # of all rotations mixing changes no target: both images are rotated alike
        mixing = context.mixing if self.rotations == "one" else None
        targets = soften(turns, mixing, context.smoothing)
        top1 = (logits.detach().argmax(dim=1) == targets.heaviest).float().mean()
        return StepOutput(soft_cross_entropy(logits, targets), features, {"rotation_top1": top1})
