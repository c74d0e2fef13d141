"""`JointEmbeddingTask`: the base class of tasks that compare embeddings of several views."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from pretext.base.task import PretextTask
from ssl_toolkit.augment import RandomView, Views
from ssl_toolkit.batch import Images
from ssl_toolkit.modules import mlp
from ssl_toolkit.random import fold_in


class JointEmbeddingTask(PretextTask):
    """Base class of joint-embedding tasks, which compare several views of each image. A new one defines `loss` only.

    Args:
        view: How a view is made; two are drawn of each image. The short form of ``views`` with one entry and a count of
            2.
        views: Named distributions of views, each with its count and size: two different ones
            (``first: {preset: byol_first}, second: {preset: byol_second}``), or several sizes
            (``global: {preset: simclr, size: 96, count: 2}, local: {preset: small_crop, size: 48, count: 6}``, the
            multi-crop of Caron et al. 2020, arXiv 2006.09882, section 3.2). Pairs of views are compared of which one at
            least has the largest size. Each size is one forward pass.
        projector_widths: Widths of the projector's hidden and output layers.
        forward_passes: 1: the views of a size pass the network in one batch, which BatchNorm then normalises as one; 2:
            one view after the other, which is quicker on some machines.
        **kwargs: See `ssl_toolkit.task.Task`.

    Attributes:
        projector_has_bias: Whether the projector's last layer has a bias.
        projector_ends_with_norm: Whether BatchNorm without scale and shift comes after it, instead of a bias.
    """

    views_may_shrink = True
    traits = frozenset({"several_rows", "several_sizes"})
    projector_has_bias: ClassVar[bool] = True
    projector_ends_with_norm: ClassVar[bool] = False
    speed_settings: ClassVar[dict[str, tuple[Any, ...]]] = {**PretextTask.speed_settings, "forward_passes": (1, 2)}

    def __init__(
        self,
        *,
        view: RandomView | None = None,
        views: dict[str, Views] | None = None,
        projector_widths: tuple[int, ...],
        forward_passes: Literal[1, 2] = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if forward_passes not in (1, 2):
            raise ValueError(f"model.forward_passes is {forward_passes}, expected 1 or 2")
        if (view is None) == (not views):
            raise ValueError("give model.view (one distribution, drawn twice) or model.views (named ones), one of them")
        self.view = view
        self._random_views: list[tuple[RandomView, int]] = [(each, each.count) for each in (views or {}).values()]
        if view is not None:
            self._random_views = [(view, 2)]
        if sum(count for _, count in self._random_views) < 2:
            raise ValueError("model.views makes one view of an image, but at least two are compared; raise its count")
        self.forward_passes = forward_passes
        self.projector = mlp(
            [self.backbone.num_features, *projector_widths],
            last_norm=self.projector_ends_with_norm,
            last_bias=self.projector_has_bias,
        )

    @property
    def random_views(self) -> list[tuple[RandomView, int]]:
        """The distributions from which views are drawn, each with the number of views."""
        return self._random_views

    def make_views(self, images: Images, keys: Tensor) -> tuple[Tensor, ...]:
        """The views of each image, in order: float32 tensors of shape ``[batch, channels, size, size]``."""
        made: list[Tensor] = []
        for view, count in self._random_views:
            numbers = torch.arange(len(made), len(made) + count, device=keys.device)
            made += view(images, fold_in(keys, numbers[:, None]))
        return tuple(made)

    @property
    def sizes(self) -> list[int]:
        """The side of each view in pixels, as it is at the end of a run."""
        return [view.size for view, count in self._random_views for _ in range(count)]

    @property
    def large_views(self) -> list[int]:
        """The numbers of the views that have the largest size."""
        return [number for number, size in enumerate(self.sizes) if size == max(self.sizes)]

    def pairs(self) -> list[tuple[int, int]]:
        """The pairs of views that are compared: two of the largest size, or one of them and a smaller one."""
        large = self.large_views
        return [(one, other) for one in large for other in range(len(self.sizes)) if other not in large or one < other]

    def directed_pairs(self) -> list[tuple[int, int]]:
        """Each view of the largest size, as a target, with each other view, of which it is the target."""
        return [(large, other) for large in self.large_views for other in range(len(self.sizes)) if other != large]

    def passes(self, numbers: Iterable[int]) -> list[list[int]]:
        """Divides views into forward passes: one for each size, or for each view."""
        if self.forward_passes == 2:
            return [[number] for number in numbers]
        by_size: dict[int, list[int]] = {}
        for number in numbers:
            by_size.setdefault(self.sizes[number], []).append(number)
        return list(by_size.values())

    def student_views(self) -> list[int]:
        """The numbers of the views that pass the network; here all."""
        return list(range(len(self.sizes)))

    def embed(self, views: tuple[Tensor, ...]) -> tuple[Tensor, dict[int, Tensor]]:
        """The network's output for the views that it sees.

        Args:
            views: As `make_views` gives them.

        Returns:
            The backbone's features, of shape ``[num_views * batch, num_features]``, in the order of the passes, and by
            the number of its view each embedding, of shape ``[batch, width]``.
        """
        passes = self.passes(self.student_views())
        features = [self.backbone(torch.cat([views[number] for number in group])) for group in passes]
        embedded = by_view(passes, [self.projector(each) for each in features])
        return torch.cat(features), embedded

    def mixed_rows(self, batch: Any, partners: Tensor) -> tuple[Tensor, Tensor]:
        """The first view is mixed; the others are what it is compared with."""
        images = torch.arange(len(partners), device=partners.device)
        order = [number for group in self.passes(self.student_views()) for number in group]
        mixed = [(images if number else partners) + place * len(images) for place, number in enumerate(order)]
        return images.repeat(len(order)), torch.cat(mixed)


def by_view(passes: list[list[int]], outputs: list[Tensor]) -> dict[int, Tensor]:
    """Outputs of the forward passes, by the number of the view."""
    found = {}
    for group, output in zip(passes, outputs, strict=True):
        found |= dict(zip(group, output.chunk(len(group)), strict=True))
    return found
