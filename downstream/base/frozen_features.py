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
    """The features of the images of a split, the same in every process.

    Attributes:
        indices: int64 tensor of shape ``[num]``: the numbers in the source of the images, sorted.
        features: float32 tensor of shape ``[num, num_features]``, on the device of the task.
        views: Float tensor of shape ``[few, channels, height, width]``: what the backbone saw of some images.
    """

    indices: Tensor
    features: Tensor
    views: Tensor

    def of(self, indices: Tensor) -> Tensor:
        """The features of some images of the split.

        Args:
            indices: int64 tensor of shape ``[batch]``: their numbers in the source.
        """
        return self.features[torch.searchsorted(self.indices, indices)]


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
    indices, features, labels, views = [], [], [], []
    task.training = split == "train"
    try:
        with trainer.precision_plugin.forward_context():
            for batch in data.loader(split):
                batch = trainer.strategy.batch_to_device(batch, task.device)
                keys = sample_keys(task.seed, 0, batch.indices)
                if not views:
                    views.append(task.make_views(batch.images, keys)[:8].clone())
                if found is not None:
                    break
                features.append(task.frozen_features(batch.images, keys).float())
                indices.append(batch.indices)
                labels.append(batch.labels)
    finally:
        task.training = was_training
        if hasattr(task, "reshard"):  # what is set in a gathered weight would be forgotten with it
            task.reshard()
    if not views:
        raise ValueError(f"{what}: no image of the {split} split can be decoded")
    if found is not None:
        order = found.indices.argsort()
        kept = found.features["pooled"][order].to(task.device)
        return FrozenFeatures(found.indices[order].to(task.device), kept, views[0])
    everywhere = gather_uneven(torch.cat(indices))[0]
    order = everywhere.argsort()
    computed = FrozenFeatures(everywhere[order], gather_uneven(torch.cat(features))[0][order], views[0])
    if store is not None and key is not None:
        keep(store, key, data, split, computed.indices, computed.features, gather_uneven(torch.cat(labels))[0][order])
    return computed
