"""SparK: predict the hidden patches of an image, with convolutions that see the visible ones alone.

Tian, Jiang, Diao, Lin, Wang, Yuan: "Designing BERT for convolutional networks: sparse and hierarchical masked
modeling", ICLR 2023, arXiv 2301.03580.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pretext.base import PretextTask
from ssl_toolkit.augment import RandomView
from ssl_toolkit.batch import Images
from ssl_toolkit.losses import masked_reconstruction
from ssl_toolkit.modules import Backbone, LightDecoder
from ssl_toolkit.modules.visible import VisiblePlaces, only_visible, see_visible_only
from ssl_toolkit.random import fold_in, permutations
from ssl_toolkit.step import StepContext, StepOutput

# how many maps of the network the decoder gets, as in the paper: those of strides 4 to 32
MAPS = 4
# side in pixels of the image on which the network's strides are found: a multiple of all that there are
_PROBE = 256


class Masked(NamedTuple):
    """Views of a batch, and what the network may see of them.

    Attributes:
        views: ``[batch, channels, size, size]``.
        visible: int64 tensor of shape ``[batch, num]``: the numbers of each view's visible patches in reading order.
    """

    views: Tensor
    visible: Tensor


class SparK(PretextTask):
    """SparK: masked image modelling for convolutional networks (Tian et al. 2023, section 3).

    A view is divided into square patches, most of which are hidden. The network computes with the others as if nothing
    else were there (`ssl_toolkit.modules.visible`), and a light decoder predicts the pixels of the hidden ones from its
    last four maps. The backbone that is exported is the plain network: what hides patches is no part of it. What its
    features are made of beyond the last map (the head's normalisation of ConvNeXts) has no part in the loss and stays
    as it is.

    Args:
        view: How a view is made. Its size is a multiple of ``patch_size``.
        patch_size: Side of a patch in pixels, a multiple of the network's stride, which it is by default: 32 with the
            standard stem, 8 for a ResNet with ``stem: small``.
        mask_ratio: Fraction of the patches that are hidden, above 0 and below 1 (the paper: 0.6), drawn from the
            sample's key. Rounded so that one patch at least is hidden and one is not; the same number in each view.
        decoder_width: Channels of the decoder's first block; each further one has half of the one before.
        **kwargs: See `ssl_toolkit.task.Task`.
    """

    # predictions that begin near 0 are a little above; of patches of a single colour nothing is to be predicted
    initial_loss_margin = (1.0, 0.25)

    def __init__(
        self,
        *,
        view: RandomView,
        patch_size: int | None = None,
        mask_ratio: float = 0.6,
        decoder_width: int = 256,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        see_visible_only(self.backbone.model, self.backbone.name)
        strides = strides_of(self.backbone)
        deepest = strides[-1]
        patch_size = deepest if patch_size is None else patch_size
        if patch_size < 1 or patch_size % deepest:
            raise ValueError(
                f"model.patch_size is {patch_size}, expected a multiple of the stride of {self.backbone.name}, "
                f"{deepest} px"
            )
        if view.size % patch_size or view.size < 2 * patch_size:
            raise ValueError(
                f"model.view.size is {view.size}, expected a multiple of the patches of {patch_size} px, at least two "
                "of them; patches are as large as the network's stride or larger (backbone.stem: small makes it less)"
            )
        if not 0 < mask_ratio < 1:
            raise ValueError(f"model.mask_ratio is {mask_ratio}, expected a fraction above 0 and below 1")
        self.view = view
        self.patch_size = patch_size
        self.grid = view.size // patch_size
        num = self.grid**2
        self.num_visible = min(max(1, round((1 - mask_ratio) * num)), num - 1)
        # of maps of one size the deepest
        self.maps = dict(zip(strides, self.backbone.stages[-MAPS:], strict=True))
        channels = dict(zip(strides, self.backbone.stage_channels[-MAPS:], strict=True))
        self.decoder = LightDecoder(channels, decoder_width, self.backbone.in_channels)
        for name in ("norm_pre", "head"):  # of ConvNeXts
            getattr(self.backbone.model, name, nn.Identity()).requires_grad_(False)

    def initial_loss(self, batch_size: int) -> float:
        """The variance of a normalised patch, which is what its mean misses."""
        return 1.0

    def make_views(self, images: Images, keys: Tensor) -> Masked:
        """The view of each image, and the patches of it that are not hidden."""
        order = permutations(fold_in(keys, "mask"), self.grid**2)
        return Masked(self.view(images, fold_in(keys, "view")), order[:, : self.num_visible].sort(dim=1).values)

    def view_pictures(self, views: Masked) -> Tensor:
        """Each view, and what is visible of it: hidden patches are grey."""
        mask = self.places(views).mask(views.views.shape[-1])
        return torch.stack([views.views, torch.where(mask, views.views, 0.5)], dim=1)

    def places(self, views: Masked) -> VisiblePlaces:
        """What the network may see."""
        return VisiblePlaces(views.visible, self.grid, self.patch_size)

    def loss(self, views: Masked, context: StepContext) -> StepOutput:
        """Squared error of the hidden patches, each normalised; ``variance_explained`` is 0 by chance, 1 at best."""
        places = self.places(views)
        with only_visible(places):
            features, maps = self.backbone(views.views, with_maps=True)
            predicted = self.decoder({stride: maps[stage] for stride, stage in self.maps.items()}, places)
        loss, explained = masked_reconstruction(predicted, views.views, ~places.visible)
        return StepOutput(loss, features, {"variance_explained": explained})


def strides_of(backbone: Backbone) -> list[int]:
    """The strides in pixels of a backbone's last maps, shallow to deep."""
    sides = list(backbone.map_sides(_PROBE).values())[-MAPS:]
    if any(_PROBE % side for side in sides):
        raise ValueError(
            f"the maps of {backbone.name} have {sides} places along {_PROBE} px of an image, but a place may not lie "
            "in two patches; leave out what changes them (model.backbone.kwargs)"
        )
    return [_PROBE // side for side in sides]
