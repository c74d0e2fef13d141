"""Figures of segmentation: confusion matrices of pixels, and the mean intersection over union."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ssl_toolkit.data.masks import IGNORE

if TYPE_CHECKING:
    from jaxtyping import Float, Int64, Num


def image_confusions(
    predicted: Int64[Tensor, "images height width"], masks: Num[Tensor, "images height width"], num_classes: int
) -> Int64[Tensor, "images classes classes"]:
    """How many pixels of each image are of one class and predicted to be of another.

    Args:
        predicted: Class numbers.
        masks: The true ones; pixels of 255 do not count.
        num_classes: Class numbers are below it.

    Returns:
        Exact counts by image, true class and predicted class.
    """
    num = len(masks)
    counts = masks != IGNORE
    images = torch.arange(num, device=masks.device)[:, None, None]
    cells = (images * num_classes + masks.long()) * num_classes + predicted
    return cells[counts].bincount(minlength=num * num_classes**2).view(num, num_classes, num_classes)


def class_iou(confusion: Int64[Tensor, "classes classes"]) -> Float[Tensor, " classes"]:
    """Intersection over union of each class: pixels that are of the class and predicted so, over those that are either.

    Args:
        confusion: Pixels by true class and predicted class.

    Returns:
        float64 tensor of numbers in ``[0, 1]``; NaN for a class of which there is no pixel.
    """
    right, truth = confusion.diagonal().double(), confusion.sum(dim=1).double()
    iou = right / (truth + confusion.sum(dim=0) - right)
    return iou.where(truth > 0, math.nan)


def mean_iou(confusion: Int64[Tensor, "classes classes"]) -> float:
    """Mean intersection over union (mIoU) of the classes of which there are pixels; NaN if there are none.

    A class that is predicted, and of which there is no pixel, has no term of its own: it lowers those of the classes
    whose pixels were taken for it (Everingham et al. 2015, "The PASCAL Visual Object Classes challenge: a
    retrospective", IJCV 111, section 2.2.4, has the figure for data sets that have all classes).
    """
    return float(class_iou(confusion).nanmean())


def pixel_accuracy(confusion: Int64[Tensor, "classes classes"]) -> float:
    """The share of pixels that are predicted rightly; NaN if there are none."""
    total = int(confusion.sum())
    return int(confusion.diagonal().sum()) / total if total else math.nan
