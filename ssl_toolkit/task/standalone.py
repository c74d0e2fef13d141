"""Standalone use of a task in Lightning, without this project's commands: plain loaders, prediction, checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from lightning import LightningDataModule
from torch import Tensor

from ssl_toolkit.augment import CenterView
from ssl_toolkit.batch import as_batch
from ssl_toolkit.data import ImageData
from ssl_toolkit.distributed.ranks import rank, world_size
from ssl_toolkit.random import sample_keys
from ssl_toolkit.task.loading import load_task
from ssl_toolkit.task.optimization import OptimizedModule

if TYPE_CHECKING:
    from typing_extensions import Self

Trait = Literal["teacher", "queue", "batch_statistics", "several_rows", "several_sizes", "labels", "sequences"]

# by which the places of images in an epoch are apart from one batch to the next
_MOST_IN_A_BATCH = 2**20


class StandaloneModule(OptimizedModule):
    """Standalone part of a `Task`: what Lightning's own calls find."""

    data_class: ClassVar[type[LightningDataModule]] = ImageData
    traits: frozenset[Trait] = frozenset()

    @classmethod
    def load_from_checkpoint(  # pyright: ignore[reportIncompatibleMethodOverride] - Lightning's is no plain method
        cls,
        checkpoint_path: str | Path,
        map_location: Any = None,
        hparams_file: Any = None,
        strict: bool | None = None,
        weights_only: bool | None = True,
        **kwargs: Any,
    ) -> Self:
        """A task with the weights of a run's checkpoint, outside of a trainer: Lightning's name and arguments.

        Args:
            checkpoint_path: A file of ``RUN/checkpoints``.
            map_location: The device to put the task on; None for the CPU.
            hparams_file: Refused: a run's arguments are in its ``config.yaml``.
            strict: All tensors must fit; False is refused.
            weights_only: Plain data are read and no code is run; False is refused.
            **kwargs: The arguments of the class, as the run had them. A classifier takes the number of classes from the
                checkpoint.

        Raises:
            ValueError: In one line: it is no checkpoint of a run, arguments are missing, or a tensor does not fit.
        """
        if hparams_file is not None:
            raise ValueError("hparams_file is not used: give the arguments of the task by name")
        if strict is False or weights_only is False:
            raise ValueError("a checkpoint is loaded whole and as plain data: leave out strict and weights_only")
        task = load_task(cls, Path(checkpoint_path), kwargs)
        return task if map_location is None else task.to(map_location)

    def _on_before_batch_transfer(self, batch: Any, dataloader_idx: int = 0) -> Any:
        # the hook of this name without the underscore makes Lightning warn wherever there is a data module
        return self.batch_of(super()._on_before_batch_transfer(batch, dataloader_idx))

    def batch_of(self, batch: Any) -> Any:
        """The `Batch` that what a loader of the user's own delivers stands for; other batches stay as they are.

        Without indices an image is known by its place in the epoch, so each epoch draws other numbers.

        Raises:
            ValueError: It is neither, or there are no labels for a task that needs some.
        """
        if hasattr(batch, "indices") and hasattr(batch, "epoch"):
            return batch
        if not issubclass(self.data_class, ImageData) or "sequences" in self.traits:
            raise ValueError(f"{type(self).__name__} takes the batches of {self.data_class.__name__} only")
        trainer: Any = self.trainer
        loop = trainer._active_loop
        number = getattr(loop, "epoch_loop", loop).batch_progress.current.ready
        place = (number * world_size() + rank()) * _MOST_IN_A_BATCH
        made = as_batch(batch, self.current_epoch if trainer.training else 0, place)
        if trainer.training:
            own: Any = self
            own.check_batch(len(made.indices) * world_size())
        if "labels" in self.traits and not trainer.predicting and int(made.labels.min()) < 0:
            raise ValueError(f"{type(self).__name__} needs a label from 0 for each image: (images, labels)")
        classes = getattr(self, "num_classes", None)
        if classes is not None and "labels" in self.traits and int(made.labels.max()) >= classes:
            raise ValueError(f"a label is {int(made.labels.max())}, but num_classes is {classes}: labels begin with 0")
        return made

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The pooled features of the exported backbone for the centred square of each image.

        Called by ``Trainer.predict``, in evaluation mode.

        Args:
            batch: What ``predict_dataloader`` delivers, or a plain loader of images.
            batch_idx: Its number.

        Returns:
            Float tensor of shape ``[batch, num_features]``.
        """
        # a plain loader's images are seen as they are
        data = getattr(self._trainer, "datamodule", None)
        size = getattr(data, "image_size", None) or int(batch.images.sizes.min())
        own: Any = self
        return own.exported_backbone(CenterView(size)(batch.images, sample_keys(own.seed, 0, batch.indices)))
