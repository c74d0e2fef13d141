"""Random-weights baseline of every evaluation: the same architecture, untrained."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from ssl_toolkit.batch import Batch
from ssl_toolkit.evaluation.features import evaluation_mode, views

if TYPE_CHECKING:
    from ssl_toolkit.augment import View
    from ssl_toolkit.modules.backbone import Backbone


def random_backbone(like: Backbone, seed: int = 0) -> Backbone:
    """A backbone of the same architecture and normalisation with initial random weights, on the same device.

    Args:
        like: The backbone whose arguments are used; it is not changed.
        seed: Of the initialisation. The global generator is left as it was.
    """
    state = torch.get_rng_state()
    torch.default_generator.manual_seed(seed)
    try:
        backbone = type(like)(**{**like.config(), "pretrained": False})
    finally:
        torch.set_rng_state(state)
    backbone.set_normalization(like.mean, like.std)
    return backbone.to(next(like.parameters()).device)


def calibrate_batch_norm(backbone: Backbone, loader: Iterable[Batch], view: View, max_images: int = 10_000) -> None:
    """Estimates the statistics of batch norm from images, as training without steps would; changes ``backbone``.

    A network that has never seen an image has means 0 and variances 1 in its batch norms, which fit no layer; a trained
    one has the statistics of its images, so the baseline gets them too. On CIFAR-10 (two narrow ResNets with small
    stem, 1,200 and 3,600 training images, five seeds each) this made kNN better in 20 of 20 cases (0.3 to 6.7 points)
    and the linear probe hardly: 0.7 points on average, between -4.0 and 4.5. Each statistic is the plain average over
    the batches.

    Args:
        backbone: The backbone; without batch norm nothing happens.
        loader: Batches of training images, shuffled. Batches of a single image are left out.
        view: What the backbone sees of each image.
        max_images: Stop after the batch that reaches this number.
    """
    norms = [module for module in backbone.modules() if isinstance(module, _BatchNorm)]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    num = 0
    with evaluation_mode(backbone), torch.no_grad():
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None
            norm.train()
        for x, _ in views(loader, view, next(backbone.parameters()).device):
            if len(x) > 1:
                backbone(x)
            num += len(x)
            if num >= max_images:
                break
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
