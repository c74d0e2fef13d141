"""What an evaluation needs of its images: three splits with labels."""

from __future__ import annotations

from typing import get_args

from ssl_toolkit.data import ImageData, Split


def has_no_labels(data: ImageData) -> bool:
    """Whether no image of any split has a label."""
    return not any(bool((data.labels(split) >= 0).any()) for split in get_args(Split))


def check_labelled_splits(data: ImageData, with_labels: bool = True) -> None:
    """Raises a ValueError of one line if a split is empty, one of its images has no label, or images have weights.

    Args:
        data: The images.
        with_labels: Whether they need labels.
    """
    if data.weighted:
        raise ValueError("data.columns.weight is for the loss of a transfer; an evaluation counts all images alike")
    if data.has_covariates:
        raise ValueError("data.covariates are for the head of a transfer, and an evaluation has none: leave them out")
    if data.class_balance:
        raise ValueError("data.class_balance is for a training; an evaluation takes each image once: leave it out")
    fixes: dict[Split, str] = {
        "train": "give a folder with more images",
        "val": "give --data.val_fraction 0.1 or --data.val_path FOLDER",
        "test": "give --data.test_fraction 0.2 or --data.test_path FOLDER",
    }
    for split, fix in fixes.items():
        if not data.num_images(split):
            raise ValueError(
                f"an evaluation needs the splits train, val and test, but the {split} split is empty; {fix}"
            )
        missing = int((data.labels(split) < 0).sum())
        if missing and with_labels:
            raise ValueError(
                f"an evaluation needs labelled images, but {missing} of {data.num_images(split)} images of the {split} "
                "split have no label; with one sub-folder for each class give --data.labels folder"
            )
