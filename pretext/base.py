"""What every pretext task shares: views are made from bytes, on the device, without gradient."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ssl_toolkit.augment import RandomView
from ssl_toolkit.batch import Batch, Images
from ssl_toolkit.modules.mlp import mlp
from ssl_toolkit.random import fold
from ssl_toolkit.task import StepOutput, Task


class PretextTask(Task):
    """A task that needs no labels. A new one defines `make_views` and `loss` and nothing else.

    Attributes:
        views_may_shrink: Whether the task can do with views smaller than ``view.size`` (see
            `ssl_toolkit.callbacks.ProgressiveSize`).
    """

    views_may_shrink: ClassVar[bool] = False

    @abstractmethod
    def make_views(self, images: Images, keys: Tensor) -> Any:
        """Makes what the network will see.

        Args:
            images: A batch of images, as bytes.
            keys: int64 tensor of shape ``[batch]``: draw every random choice about a sample from its key.

        Returns:
            A tensor or a tuple of tensors, float32 in [0, 1]; whatever `loss` takes.
        """

    @abstractmethod
    def loss(self, views: Any) -> StepOutput:
        """Computes the loss of the views."""

    def view_pictures(self, views: Any) -> Tensor:
        """The views as pictures: float tensor of shape ``[batch, num_views, channels, height, width]`` in [0, 1].

        Here for views of that shape, or ``[batch, channels, height, width]``, or a tuple of the latter of equal size;
        a task with other views defines its own.
        """
        stacked = views if isinstance(views, Tensor) else torch.stack(tuple(views), dim=1)
        return stacked if stacked.ndim == 5 else stacked[:, None]

    @property
    def image_size(self) -> int | None:
        """Side in pixels of the images on which the backbone is evaluated; None for the data's own."""
        return getattr(getattr(self, "view", None), "size", None)

    def step(self, batch: Batch, keys: Tensor) -> StepOutput:
        """Views, then loss; the labels of the batch are not touched."""
        with torch.no_grad():
            views = self.make_views(batch.images, keys)
        return self.loss(views)

    @torch.no_grad()
    def example_views(self, batch: Batch) -> Tensor:
        """What the task sees of a batch in its epoch, as pictures (see `view_pictures`)."""
        return self.view_pictures(self.make_views(batch.images, self.keys(batch)))


class TwoViewTask(PretextTask):
    """A task that compares the embeddings of two views of each image. A new one defines `loss` and nothing else.

    Args:
        view: How a view is made; two are drawn of each image.
        projector_widths: Widths of the projector's hidden and output layers.
        forward_passes: 1: both views pass the network in one batch, which BatchNorm then normalises as one; 2: one
            view after the other, which is quicker on some machines.
        **kwargs: See `ssl_toolkit.task.Task`.

    Attributes:
        projector_has_bias: Whether the projector's last layer has a bias.
    """

    views_may_shrink = True
    projector_has_bias: ClassVar[bool] = True
    speed_settings: ClassVar[dict[str, tuple[Any, ...]]] = {**PretextTask.speed_settings, "forward_passes": (1, 2)}

    def __init__(
        self,
        *,
        view: RandomView,
        projector_widths: tuple[int, ...],
        forward_passes: Literal[1, 2] = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if forward_passes not in (1, 2):
            raise ValueError(f"model.forward_passes is {forward_passes}, expected 1 or 2")
        self.view = view
        self.forward_passes = forward_passes
        widths = [self.backbone.num_features, *projector_widths]
        self.projector = mlp(widths, last_bias=self.projector_has_bias)

    def make_views(self, images: Images, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Two views of each image, each of shape ``[batch, channels, size, size]``."""
        first, second = self.view(images, fold(keys, torch.arange(2, device=keys.device)[:, None]))
        return first, second

    def embed(self, views: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """The network's output for both views.

        Args:
            views: As `make_views` gives them.

        Returns:
            The backbone's features, of shape ``[2 * batch, num_features]``, and the embeddings of the first and of the
            second views, each of shape ``[batch, width]``.
        """
        batches = views if self.forward_passes == 2 else (torch.cat(views),)
        features = [self.backbone(batch) for batch in batches]
        first, second = torch.cat([self.projector(each) for each in features]).chunk(2)
        return torch.cat(features), first, second
