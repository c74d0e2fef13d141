"""Online evaluation: kNN and linear probe of the features during pretraining."""

from __future__ import annotations

import math
import time
from typing import Any, cast

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.utils._pytree import tree_leaves

from ssl_toolkit.augment import CenterView, View
from ssl_toolkit.callbacks.weight_average import averaged_weights
from ssl_toolkit.data import ImageData, Split
from ssl_toolkit.distributed.dtensor import summon_full_params
from ssl_toolkit.evaluation.features import extract_features
from ssl_toolkit.evaluation.knn import knn_accuracy
from ssl_toolkit.evaluation.linear_probe import linear_probe
from ssl_toolkit.evaluation.representation import rank_me, spread
from ssl_toolkit.modules.backbone import Backbone
from ssl_toolkit.task import Task

# of the training's arithmetic, for all evaluations but the last
_SHARE = 0.02


class OnlineEvaluation(Callback):
    """Online evaluation of the backbone's frozen features, every few epochs and after the last one.

    Logs ``val/spread`` and ``val/rank_me`` of the validation images' features; where the images have labels, also
    ``val/knn_top1``, the accuracy of kNN on the validation images with training images as the bank (in [0, 1]); and
    ``val/evaluation_seconds``, what it cost. The training is not touched: the weights after a run are the same, bit for
    bit, with and without it. Under several processes each one extracts the features of its part of the images.

    Args:
        every_n_epochs: Evaluate after each so many epochs; 0 for never. By default as often as takes about 2 % of the
            training's arithmetic (see `interval`).
        max_train: Most training images in the bank, chosen once by the seed.
        max_val: Most validation images, chosen likewise.
        k: Number of neighbours that vote (all of the bank if it has fewer).
        linear_probe: Also log ``val/linear_probe_top1``. A fifth of the bank chooses its penalty.
        image_size: Side in pixels of what the backbone sees; by default the task's ``image_size`` if it has one, else
            the data's.
        seed: Of the choice of images.
    """

    def __init__(
        self,
        every_n_epochs: int | None = None,
        max_train: int = 10_000,
        max_val: int = 5_000,
        k: int = 20,
        linear_probe: bool = False,
        image_size: int | None = None,
        seed: int = 0,
    ) -> None:
        if every_n_epochs is not None and every_n_epochs < 0:
            raise ValueError(f"OnlineEvaluation: every_n_epochs is {every_n_epochs}, expected at least 0 (never)")
        for name, value in (("max_train", max_train), ("max_val", max_val), ("k", k), ("image_size", image_size)):
            if value is not None and value < 1:
                raise ValueError(f"OnlineEvaluation: {name} is {value}, expected at least 1")
        self.every_n_epochs = every_n_epochs
        self.max_train = max_train
        self.max_val = max_val
        self.k = k
        self.linear_probe = linear_probe
        self.image_size = image_size
        self.seed = seed
        self._every = 1 if every_n_epochs is None else every_n_epochs

    def interval(self, task: LightningModule, data: ImageData) -> int:
        """Epochs from one evaluation to the next; 0 for never.

        Args:
            task: Its views tell how many pixels of an image pass the network; three times that is a training step's
                arithmetic, where an evaluation passes the image once.
            data: The images, set up.
        """
        if self.every_n_epochs is not None:
            return self.every_n_epochs
        side = self._view(task, data).size
        seen = 3 * data.num_images("train") * _pixels_of_views(task, data) / side**2
        return max(1, math.ceil(self._num_images(data) / (_SHARE * seen)))

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Settles when to evaluate."""
        data = getattr(trainer, "datamodule", None)
        if isinstance(data, ImageData):
            self._every = self.interval(pl_module, data)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluates if it is time to."""
        if not self._every:
            return
        due = (trainer.current_epoch + 1) % self._every == 0
        if not (due or _is_last_epoch(trainer)):
            return
        start = time.perf_counter()
        with averaged_weights(trainer, pl_module), summon_full_params(pl_module):
            values = self._evaluate(trainer, pl_module)
        values["evaluation_seconds"] = time.perf_counter() - start
        for name, value in values.items():
            pl_module.log(
                f"val/{name}",
                value,
                prog_bar=name == "knn_top1",
                batch_size=1,
                sync_dist=trainer.world_size > 1,
            )

    def estimate_seconds(self, trainer: Trainer, pl_module: LightningModule, data: ImageData) -> float:
        """What one evaluation will take, from the features of a few images; what follows takes little beside them."""
        if not data.num_images("val"):
            return 0.0
        few = min(2 * data.batch_size, data.num_images("train"))
        view = self._view(pl_module, data)
        for _ in range(2):  # the first pass is slower
            start = time.perf_counter()
            features, _ = self._features(trainer, pl_module, data, view, "train", few)
        return (time.perf_counter() - start) * self._num_images(data) / len(features)

    def _num_images(self, data: ImageData) -> int:
        """How many images an evaluation looks at."""
        if not data.num_images("val"):
            return 0
        labelled = not ((data.labels("train") < 0).all() or (data.labels("val") < 0).all())
        num_train = min(self.max_train, data.num_images("train")) if labelled else 0
        return num_train + min(self.max_val, data.num_images("val"))

    def _view(self, pl_module: LightningModule, data: ImageData) -> CenterView:
        return CenterView(self.image_size or getattr(pl_module, "image_size", None) or data.image_size)

    def _evaluate(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, float]:
        """The figures, the same on every process."""
        data = getattr(trainer, "datamodule", None)
        if not isinstance(data, ImageData):
            raise ValueError(
                f"OnlineEvaluation needs the images as ImageData, got {type(data).__name__}: call "
                "trainer.fit(task, datamodule=ImageData(...))"
            )
        if not data.num_images("val"):
            return {}
        view = self._view(pl_module, data)
        val, val_labels = self._features(trainer, pl_module, data, view, "val", self.max_val)
        values = {"spread": spread(val), "rank_me": rank_me(val)}
        # every process comes to the same answer: it knows the labels of all images
        if (data.labels("train") < 0).all() or (data.labels("val") < 0).all():
            return values
        bank, bank_labels = self._features(trainer, pl_module, data, view, "train", self.max_train)
        return values | self._accuracies(bank, bank_labels, val, val_labels)

    def _accuracies(self, bank: Tensor, bank_labels: Tensor, val: Tensor, val_labels: Tensor) -> dict[str, float]:
        bank, bank_labels = bank[bank_labels >= 0], bank_labels[bank_labels >= 0]
        val, val_labels = val[val_labels >= 0], val_labels[val_labels >= 0]
        names = ["knn_top1"] + ["linear_probe_top1"] * self.linear_probe
        choosing = torch.arange(len(bank)) % 5 == 0
        if not (len(val) and len(bank) > 1 and bank.isfinite().all() and val.isfinite().all()):
            return dict.fromkeys(names, math.nan)
        values = {"knn_top1": next(iter(knn_accuracy(bank, bank_labels, val, val_labels, [self.k]).values()))}
        if self.linear_probe:
            fitted = (bank[~choosing], bank_labels[~choosing])
            probe = linear_probe(fitted, (bank[choosing], bank_labels[choosing]), (val, val_labels))
            values["linear_probe_top1"] = probe.top1
        return values

    def _features(
        self, trainer: Trainer, pl_module: LightningModule, data: ImageData, view: View, split: Split, most: int
    ) -> tuple[Tensor, Tensor]:
        """Pooled features and labels of the chosen images of a split, of all processes."""
        chosen = data.choose(split, most, self.seed)
        # of a teacher and its student the one that a task exports
        backbone = cast(Backbone, getattr(pl_module, "exported_backbone", pl_module.backbone))
        extracted = extract_features(backbone, data.loader(split, indices=chosen), view)
        part = (extracted.features["pooled"], extracted.labels, extracted.indices)
        if trainer.world_size == 1:
            return part[:2]
        # the only meeting of the processes, after all of the work
        parts = [part] * trainer.world_size
        torch.distributed.all_gather_object(parts, part)
        features, labels, indices = (torch.cat(each) for each in zip(*parts, strict=True))
        order = indices.argsort(stable=True)  # that of one process
        return features[order], labels[order]


@torch.no_grad()
def _pixels_of_views(task: LightningModule, data: ImageData) -> float:
    """How many pixels of an image the network sees in a step, all views together."""
    make_views: Any = getattr(task, "make_views", None)
    if not isinstance(task, Task) or make_views is None:
        return float(data.image_size**2)
    batch = next(iter(data.loader("train", batch_size=1)))
    images = type(batch.images)(*(tensor.to(task.device) for tensor in batch.images))
    views = make_views(images, task.keys(batch).to(task.device))
    seen = [each for each in tree_leaves(views) if isinstance(each, Tensor) and each.is_floating_point()]
    num = sum(view.numel() for view in seen) / data.channels / len(batch.indices)  # a process may get two
    return num or float(data.image_size**2)  # of a task whose views are of another kind


def _is_last_epoch(trainer: Trainer) -> bool:
    """Whether training ends with this epoch."""
    by_epochs = trainer.max_epochs not in (None, -1) and trainer.current_epoch + 1 >= trainer.max_epochs
    by_steps = trainer.max_steps != -1 and trainer.global_step >= trainer.max_steps
    return by_epochs or by_steps or trainer.should_stop
