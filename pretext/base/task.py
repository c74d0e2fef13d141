"""`PretextTask`: the base class of pretext tasks, whose views are made on the device, without gradient."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ssl_toolkit.augment import RandomView
from ssl_toolkit.batch import Batch, Images
from ssl_toolkit.step import StepContext, StepOutput
from ssl_toolkit.task import Task


class PretextTask(Task):
    """Base class of pretext tasks. A new one defines `make_views` and `loss` only.

    Attributes:
        views_may_shrink: Whether the task can do with views smaller than their ``size`` (see
            `ssl_toolkit.callbacks.ProgressiveSize`).
    """

    views_may_shrink: bool = False

    @abstractmethod
    def make_views(self, images: Images, keys: Tensor) -> Any:
        """Makes what the network will see.

        Args:
            images: A batch of images, as bytes.
            keys: int64 tensor of shape ``[batch]``: draw every random choice about a sample from its key.

        Returns:
            A tensor or a tuple of tensors, images as float32 in [0, 1]; whatever `loss` takes.
        """

    @abstractmethod
    def loss(self, views: Any, context: StepContext) -> StepOutput:
        """Computes the loss of the views.

        Args:
            views: What `make_views` has made.
            context: What the loss depends on beside them and the weights.
        """

    def check(self) -> None:
        """As in `Task`; refuses a network that is only there to be compared with."""
        super().check()
        if getattr(self.backbone.model, "is_baseline", False):
            raise ValueError(
                f"{self.backbone.name} is a baseline for transfer and no backbone, since it takes images of one size: "
                "take a convolutional network, such as resnet18"
            )

    def check_batch(self, size: int) -> None:
        """Refuses a batch of one image, which there is nothing to compare with."""
        if size < 2:
            raise ValueError(
                "a pretext task learns nothing from batches of one image; set data.batch_size to 2 or more (dozens are "
                "usual)"
            )

    def check_data(self, data: Any) -> None:
        """As in `Task`; and the smallest view must not be too small."""
        super().check_data(data)
        if self.random_views:
            self.backbone.check_size(min(view.size for view, _ in self.random_views))

    def setup(self, stage: str) -> None:
        """As in `Task`."""
        size = getattr(getattr(self._trainer, "datamodule", None), "batch_size", None)
        if stage == "fit" and isinstance(size, int):
            self.check_batch(size * self.trainer.world_size)
        labels: Any = getattr(getattr(self._trainer, "datamodule", None), "labels", None)
        if stage == "fit" and labels is not None and "labels" in self.traits and int(labels("train").max()) < 0:
            raise ValueError(
                f"{type(self).__name__} needs labels, and no training image has one; set data.labels: folder and put "
                "each class into a folder of its own, or take SimCLR, which needs none"
            )
        super().setup(stage)

    def view_pictures(self, views: Any) -> Tensor:
        """The views as pictures: float tensor of shape ``[batch, num_views, channels, height, width]`` in [0, 1].

        Here for views of that shape, or ``[batch, channels, height, width]``, or a tuple of the latter, of which the
        smaller ones are framed; a task with other views defines its own.
        """
        stacked = views if isinstance(views, Tensor) else torch.stack(framed(views), dim=1)
        return stacked if stacked.ndim == 5 else stacked[:, None]

    @property
    def random_views(self) -> list[tuple[RandomView, int]]:
        """The distributions from which views are drawn, each with the number of views; here `view`, drawn once."""
        view = getattr(self, "view", None)
        return [(view, 1)] if isinstance(view, RandomView) else []

    @property
    def image_size(self) -> int | None:
        """Side in pixels of the images on which the backbone is evaluated; None for the data's own."""
        return max((view.size for view, _ in self.random_views), default=None)

    def step(self, batch: Batch, keys: Tensor, context: StepContext) -> StepOutput:
        """Views, then loss."""
        with torch.no_grad():
            views = self.make_views(batch.images, keys)
        return self.loss(views, context)

    @torch.no_grad()
    def example_views(self, batch: Batch) -> Tensor:
        """What the task sees of a batch in its epoch, as pictures (see `view_pictures`)."""
        return self.view_pictures(self.make_views(batch.images, self.keys(batch)))


def rows_of_each(partners: Tensor, num: int) -> tuple[Tensor, Tensor]:
    """`ssl_toolkit.task.Task.mixed_rows` where the backbone sees ``num`` rows of each sample, one sample after the
    other, and the n-th row of a sample is mixed with the n-th of its partner."""
    samples = torch.arange(len(partners), device=partners.device).repeat_interleave(num)
    numbers = torch.arange(num, device=partners.device).repeat(len(partners))
    return samples, partners[samples] * num + numbers


def framed(views: Sequence[Tensor]) -> list[Tensor]:
    """Pictures of one size: small ones in the middle of a white frame."""
    height, width = (max(view.shape[side] for view in views) for side in (-2, -1))
    framed = []
    for view in views:
        down, right = height - view.shape[-2], width - view.shape[-1]
        frame = (right // 2, right - right // 2, down // 2, down - down // 2)
        framed.append(torch.nn.functional.pad(view, frame, value=1.0))
    return framed
