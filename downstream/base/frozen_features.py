"""Features of a frozen backbone, computed once for all images of a split."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from downstream.base.stored_features import find, keep, stored_key
from ssl_toolkit.augment import CenterView
from ssl_toolkit.data.divided import DividedData
from ssl_toolkit.data.splits import Split
from ssl_toolkit.distributed.collectives import gather_uneven
from ssl_toolkit.evaluation.feature_store import FeatureStore
from ssl_toolkit.random import sample_keys


class FrozenFeatures(NamedTuple):
    """The features of the images, or of the frames of the sequences, of a split, the same in every process.

    Attributes:
        indices: int64 tensor of shape ``[num]``: the numbers in the source of the images or sequences, sorted.
        features: float32 tensor of shape ``[num_rows, num_features]``, on the device of the task: a row for each image,
            or for each frame of the first sequence, of the second, and so on.
        lengths: int64 tensor of shape ``[num]``: how many rows each has.
        places: int64 tensor of shape ``[num_rows]``: of sequences, which of the source's frames each row is; of images
            it is empty.
        views: Float tensor of shape ``[few, frames, channels, height, width]``: what the backbone saw of some.
    """

    indices: Tensor
    features: Tensor
    lengths: Tensor
    places: Tensor
    views: Tensor

    def of(self, indices: Tensor) -> Tensor:
        """The features of some images or sequences of the split, all rows of one after the other.

        Args:
            indices: int64 tensor of shape ``[batch]``: their numbers in the source.
        """
        places = torch.searchsorted(self.indices, indices)
        if len(self.features) == len(self.indices):  # no sequences: nothing waits for a GPU
            return self.features[places]
        return self.features[rows_of(self.lengths, places)]


def rows_of(lengths: Tensor, places: Tensor) -> Tensor:
    """The rows of some samples where each has several, one after the other.

    Args:
        lengths: int64 tensor of shape ``[num]``: how many rows each sample has.
        places: int64 tensor of shape ``[batch]``: some of the samples.

    Returns:
        int64 tensor: the numbers of the rows of the first of them, of the second, and so on.
    """
    counts = lengths[places]
    first = (lengths.cumsum(0) - lengths)[places]
    ahead = counts.cumsum(0) - counts
    total = int(counts.sum()) if len(lengths) else 0
    return torch.repeat_interleave(first - ahead, counts, output_size=total) + torch.arange(total, device=counts.device)


def check_views(augmentation: Any, what: str) -> None:
    """Raises a ValueError for an augmentation that shows an image in more than one way.

    Args:
        augmentation: Of the training; None for the centred square.
        what: The setting that needs one way.
    """
    if augmentation is not None and not isinstance(augmentation, CenterView):
        raise ValueError(
            f"{what} takes the features of each image once, without augmentation, but model.augmentation is "
            f"{type(augmentation).__name__}: set it to null"
        )


@torch.no_grad()
def compute_features(task: Any, split: Split, what: str, store: FeatureStore | None = None) -> FrozenFeatures:
    """Computes the features of all images of a split, each process those of its part.

    They are what the task's head would get of the same batch before standardization, in the trainer's precision.

    Args:
        task: A `DownstreamTask` with a frozen backbone, in a trainer.
        split: Of the training split the views are those of training.
        what: The setting that needs them, for the message.
        store: Where they are kept, and found if they are there.

    Raises:
        ValueError: In one line, if the data are not `ssl_toolkit.data.ImageData`, or an entry of the store is damaged.
    """
    data, trainer, was_training = task.data, task.trainer, task.training
    if not isinstance(data, DividedData):
        raise ValueError(f"{what} needs the images as ImageData, got {type(data).__name__}: give it as datamodule")
    key = None if store is None else stored_key(task, data, split)
    found = None if store is None or key is None else find(store, key, data, split, task.device)
    indices, features, labels, lengths, places, views = [], [], [], [], [], []
    task.training = split == "train"
    try:
        with trainer.precision_plugin.forward_context():
            for batch in data.loader(split):
                batch = trainer.strategy.batch_to_device(batch, task.device)
                keys = sample_keys(task.seed, 0, batch.indices)
                if not views:
                    views.append(task.example_views(batch)[:8].clone())
                if found is not None:
                    break
                features.append(task.frozen_features(task.images_of(batch), task.row_keys(batch, keys)).float())
                indices.append(batch.indices)
                labels.append(batch.labels)
                lengths.append(getattr(batch, "lengths", torch.ones_like(batch.indices)))
                places.append(getattr(batch, "places", batch.indices[:0]))
    finally:
        task.training = was_training
        if hasattr(task, "reshard"):  # what is set in a gathered weight would be forgotten with it
            task.reshard()
    if not views:
        raise ValueError(f"{what}: no image of the {split} split can be decoded")
    if found is not None:
        order = found.indices.argsort()
        kept = found.features["pooled"][order].to(task.device)
        ones = torch.ones_like(found.indices).to(task.device)
        return FrozenFeatures(found.indices[order].to(task.device), kept, ones, ones[:0], views[0])
    everywhere, counts, rows, of_rows = (
        gather_uneven(torch.cat(each))[0] for each in (indices, lengths, features, places)
    )
    order = everywhere.argsort()
    chosen = rows_of(counts, order)
    computed = FrozenFeatures(
        everywhere[order], rows[chosen], counts[order], of_rows[chosen] if len(of_rows) else of_rows, views[0]
    )
    if store is not None and key is not None:
        keep(store, key, data, split, computed.indices, computed.features, gather_uneven(torch.cat(labels))[0][order])
    return computed
