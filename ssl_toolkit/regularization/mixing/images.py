"""MixUp and CutMix: mixings of the images themselves."""

from __future__ import annotations

import torch
from torch import Tensor

from ssl_toolkit.random import beta, fold_in, uniform
from ssl_toolkit.regularization.mixing.base import Mixer, Rows


class MixUp(Mixer):
    """MixUp: weighted means of two images and of their targets (Zhang et al. 2018, arXiv 1710.09412, eq. 1).

    What is mixed: images, all frames of a sequence, all patches of an image, or the first of two views; contrastive
    tasks become i-Mix (Lee et al. 2021, arXiv 2010.08887). Of training only: the loss in evaluation is the plain one.

    Args:
        alpha: Each sample's own weight is drawn from Beta(alpha, alpha), alpha above 0: the larger, the more
            equal the two (the paper: 0.1 to 0.4 on ImageNet, 1 on CIFAR-10; i-Mix: 1).
        probability: Of a sample to be mixed, above 0 and at most 1. Several mixings share the samples among them.
    """

    def __init__(self, alpha: float = 0.2, probability: float = 1.0) -> None:
        super().__init__(alpha, probability)

    def mix(self, rows: Tensor, which: Rows, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Weighted means."""
        weights = beta(keys, self.alpha)
        of_row = weights[which.samples].to(rows.dtype).view(-1, *[1] * (rows.ndim - 1))
        return rows[which.partners].lerp(rows, of_row), weights


class CutMix(Mixer):
    """CutMix: a box of one image is replaced by that of another (Yun et al. 2019, arXiv 1905.04899, equations 1 and 2).

    A sample's weight in the targets is exactly the area that is left of it. What is mixed, and in which tasks, is as
    for `MixUp`.

    Args:
        alpha: The fraction of the area that is kept is drawn from Beta(alpha, alpha), alpha above 0 (the paper: 1),
            before the box is clipped to the image.
        probability: Of a sample to be mixed, above 0 and at most 1. Several mixings share the samples among them.
    """

    def __init__(self, alpha: float = 1.0, probability: float = 1.0) -> None:
        super().__init__(alpha, probability)

    def mix(self, rows: Tensor, which: Rows, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Pasted boxes."""
        side = (1 - beta(keys, self.alpha)).sqrt()
        centres = uniform(fold_in(keys, "centre"), 2)
        inside = [
            _span(side, centre, length) for centre, length in zip(centres.unbind(1), rows.shape[-2:], strict=True)
        ]
        box = inside[0][:, :, None] & inside[1][:, None, :]
        mixed = torch.where(box[which.samples][:, None], rows[which.partners], rows)
        return mixed, 1 - box.float().mean(dim=(1, 2))


def _span(side: Tensor, centre: Tensor, length: int) -> Tensor:
    """Which pixels of a row lie within a box: bool tensor of shape ``[batch, length]``.

    Args:
        side: float32 tensor of shape ``[batch]``: the box's side as a fraction of the length.
        centre: float32 tensor of shape ``[batch]``: its centre, likewise.
        length: Of the row, in pixels.
    """
    cut = (side * length).long()
    start = (centre * length).long() - cut // 2
    pixels = torch.arange(length, device=side.device)
    return (pixels >= start[:, None]) & (pixels < (start + cut)[:, None])
