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
_OWNER = "downstream.base.task"


class CachingTask(Task):
    """Part of a `DownstreamTask` that keeps the features of a frozen backbone.

    Args:
        cache_features: With `freeze_backbone`, compute the features of the training and validation images once, before
            the first step, and train the head on them: an epoch then takes the time of the head. What is learned is the
            same. Augmentation, and what changes images or the backbone in training, is refused. They take images times
            features times 4 bytes of memory in each process.
        feature_store: With `cache_features`, a folder in which these features are kept, and found again by the next
            run, or if ``evaluate`` or ``embed`` has computed them: of the same backbone, images, size, batches and
            precision. Several processes need it on a disk that they share.
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
        if owner.__module__ != _OWNER:
            raise ValueError(
                f"cache_features is for tasks of one image each, and {type(self).__name__} is not: leave it out"
            )

    def cached_or_computed(self, batch: Any, keys: Tensor) -> Tensor:
        """The backbone's features of a batch: float tensor of shape ``[batch, num_features]``."""
        split = "train" if self.training else self._validated
        cached = None if split is None else self._cached.get(split)
        return self.backbone_features(batch.images, keys) if cached is None else cached.of(batch.indices)

    def cached_views(self, num: int) -> Tensor | None:
        """What the backbone has seen of some training images, at most so many; None where nothing is cached."""
        cached = self._cached.get("train")
        return None if cached is None else cached.views[:num]

    def on_fit_start(self) -> None:
        """Computes the features."""
        super().on_fit_start()
        if not self.cache_features:
            return
        self._cached, what = {}, "cache_features"
        splits: tuple[Split, ...] = ("train", "val")
        num = sum(self.data.num_images(split) for split in splits) if hasattr(self.data, "num_images") else 0
        width = self.backbone.num_features
        if num * width * 4 >= _SAID_FROM and is_rank_zero():
            size = num * width * 4 / 1e9
            print(f"cached features: {num:,} images x {width:,} x 4 bytes, {size:.1f} GB of memory in each process")
        store = None if self.feature_store is None else FeatureStore(self.feature_store)
        found = {"train": compute_features(self, "train", what, store)}
        if self.data.num_images("val"):
            found["val"] = compute_features(self, "val", what, store)
        self._cached = {split: found[split] for split in splits if split in found}

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
            loader.leave_out_pixels(self._cached[split].indices.cpu().numpy())
