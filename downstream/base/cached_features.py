"""Training on features of a frozen backbone that are computed once (`cache_features`)."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from torch import Tensor

from downstream.base.frozen_features import FrozenFeatures, check_views, compute_features
from ssl_toolkit.data.loader import BatchLoader
from ssl_toolkit.data.splits import Split
from ssl_toolkit.distributed.ranks import is_rank_zero
from ssl_toolkit.evaluation.feature_store import FeatureStore
from ssl_toolkit.regularization import SAM, GradientNoise, LabelSmoothing, Penalty, WeightNoise
from ssl_toolkit.task import Task

_SAID_FROM = 1e9
# what acts beside the backbone
_REGULARIZERS = (Penalty, LabelSmoothing, SAM, WeightNoise, GradientNoise)
_OWNERS = ("downstream.base.task", "downstream.base.sequence_task")


class CachingTask(Task):
    """Part of a `DownstreamTask` that keeps the features of a frozen backbone.

    Args:
        cache_features: With `freeze_backbone`, compute the features of the training and validation images, or of all
            frames of sequences, once, before the first step, and train the head on them: an epoch then takes the time
            of the head. What is learned is the same up to rounding. Augmentation, and what changes images or the
            backbone in training, is refused. They take images (or frames) times features times 4 bytes of memory in
            each process.
        feature_store: With `cache_features`, a folder in which these features are kept, and found again by the next
            run, or if ``evaluate`` or ``embed`` has computed them: of the same backbone, images, size, batches and
            precision. Several processes need it on a disk that they share. Not for sequences.
        **kwargs: Arguments of `Task`.
    """

    freeze_backbone: bool
    augmentation: Any

    def __init__(self, *, cache_features: bool = False, feature_store: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.cache_features = cache_features
        self.feature_store = feature_store
        self._cached: dict[Split, FrozenFeatures] = {}
        self._validated: Split | None = None

    @property
    def data(self) -> Any:
        """The trainer's data module; None without one."""
        return None if self._trainer is None else getattr(self._trainer, "datamodule", None)

    @abstractmethod
    def backbone_features(self, images: Any, keys: Tensor) -> Tensor:
        """Views of images through the backbone; see `DownstreamTask`."""

    def check(self) -> None:
        """As in `Task`; refuses what would not be the same with features that are computed once."""
        super().check()
        if not self.cache_features:
            if self.feature_store is not None:
                raise ValueError("feature_store keeps what cache_features computes: set cache_features, too")
            return
        if not self.freeze_backbone:
            raise ValueError("cache_features needs features that stay as they are: set freeze_backbone")
        check_views(self.augmentation, "cache_features")
        for each in self.regularizers:
            if not isinstance(each, _REGULARIZERS):
                raise ValueError(
                    f"cache_features computes features once, but {type(each).__name__} of model.regularizers changes "
                    "images or the backbone in each step: leave one of them out"
                )
        owner = next(each for each in type(self).__mro__ if "encode" in vars(each))
        if owner.__module__ not in _OWNERS:
            raise ValueError(
                f"cache_features knows how images and sequences are encoded, and {type(self).__name__} has another "
                "way: leave it out"
            )
        if self.feature_store is not None and "sequences" in self.traits:
            raise ValueError("feature_store keeps features of single images, not of sequences: leave it out")

    @abstractmethod
    def images_of(self, batch: Any) -> Any:
        """The images of a batch; see `DownstreamTask`."""

    def row_keys(self, batch: Any, keys: Tensor) -> Tensor:
        """The key of each image that the backbone sees of a batch, from those of its samples."""
        return keys

    def cached_or_computed(self, batch: Any, keys: Tensor) -> Tensor:
        """The backbone's features of a batch: float tensor of shape ``[rows, num_features]``, a row for each image."""
        split = "train" if self.training else self._validated
        cached = None if split is None else self._cached.get(split)
        if cached is None:
            return self.backbone_features(self.images_of(batch), self.row_keys(batch, keys))
        return cached.of(batch.indices)

    def cached_views(self, num: int) -> Tensor | None:
        """What the backbone has seen of some training samples, at most so many; None where nothing is cached."""
        cached = self._cached.get("train")
        return None if cached is None else cached.views[:num]

    def on_fit_start(self) -> None:
        """Computes the features."""
        super().on_fit_start()
        if not self.cache_features:
            return
        self._cached, what = {}, "cache_features"
        if getattr(self.data, "draws_clips", False):
            raise ValueError(
                "cache_features takes the features of each frame once, but data.sampling is clip, which takes other "
                "frames in each epoch: set data.sampling: uniform, or leave cache_features out"
            )
        splits: tuple[Split, ...] = ("train", "val")
        store = None if self.feature_store is None else FeatureStore(self.feature_store)
        found = {"train": compute_features(self, "train", what, store)}
        if self.data.num_images("val"):
            found["val"] = compute_features(self, "val", what, store)
        self._cached = {split: found[split] for split in splits if split in found}
        num, width = sum(len(each.features) for each in found.values()), self.backbone.num_features
        if num * width * 4 >= _SAID_FROM and is_rank_zero():
            size, noun = num * width * 4 / 1e9, "frames" if "sequences" in self.traits else "images"
            print(f"cached features: {num:,} {noun} x {width:,} x 4 bytes, {size:.1f} GB of memory in each process")

    def on_fit_end(self) -> None:
        """Forgets the features: what comes may be other images."""
        super().on_fit_end()
        self._cached = {}

    def on_train_start(self) -> None:
        """Has the loader leave out pixels that nothing looks at."""
        super().on_train_start()
        self._leave_out_pixels("train", self.trainer.train_dataloader)

    def on_validation_start(self) -> None:
        """Likewise."""
        super().on_validation_start()
        self._validated = "val"
        self._leave_out_pixels("val", self.trainer.val_dataloaders)

    def on_validation_end(self) -> None:
        """What is computed outside of a validation is of other images."""
        super().on_validation_end()
        self._validated = None

    def _leave_out_pixels(self, split: Split, loader: Any) -> None:
        if split in self._cached and isinstance(loader, BatchLoader):
            cached = self._cached[split]
            kept = (each.cpu().numpy() for each in (cached.indices, cached.lengths, cached.places))
            loader.leave_out_pixels(*kept)
