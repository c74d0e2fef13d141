"""Masks of the images of a data set: a class number for each pixel, from files or of the built-in images."""

from __future__ import annotations

from collections.abc import Callable

from ssl_toolkit.data.divided import DividedData
from ssl_toolkit.data.masks.base import Masks
from ssl_toolkit.data.masks.built_in import OBJECT, PROCEDURAL, ProceduralMasks
from ssl_toolkit.data.masks.files import IGNORE
from ssl_toolkit.data.masks.folder import FolderMasks

__all__ = ["IGNORE", "FolderMasks", "Masks", "ProceduralMasks", "open_masks"]


def open_masks(
    masks: str,
    data: DividedData,
    image_size: int,
    num_classes: int | None = None,
    count: Callable[[int], None] = lambda num: None,
) -> Masks:
    """The masks of images, all of them looked at.

    Args:
        masks: A folder, ``procedural`` (background and ten kinds of objects) or ``procedural:object`` (background and
            object).
        data: The images; its splits train, val and test need an image with a mask each.
        image_size: To which the short side of large images is reduced when they are decoded.
        num_classes: How many classes there are; by default as many as the masks show.
        count: Called with the number of masks that were looked at.

    Raises:
        ValueError: In one line, for masks that are not there or do not fit, by their names.
    """
    if num_classes is not None and not 2 <= num_classes <= IGNORE:
        raise ValueError(f"--mask_classes is {num_classes}, expected 2 to {IGNORE}, the background among them")
    if masks in (PROCEDURAL, OBJECT):
        if num_classes is not None:
            raise ValueError("--mask_classes is for a folder of masks; leave it out with the built-in masks")
        return ProceduralMasks(data, only_object=masks == OBJECT)
    return FolderMasks(masks, data, image_size, num_classes, count)
