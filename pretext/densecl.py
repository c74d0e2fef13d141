"""DenseCL: MoCo v2 with a second head, which compares the places of feature maps.

Wang, Zhang, Shen, Kong, Li: "Dense contrastive learning for self-supervised visual pre-training", CVPR 2021,
arXiv 2011.09157.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from pretext.base import QueueTask
from pretext.base.joint_embedding import by_view
from ssl_toolkit.losses import dense_info_nce, full_precision, info_nce, similar_places
from ssl_toolkit.modules import EMATeacher, FeatureQueue, mlp
from ssl_toolkit.schedule import Progress, Scheduled, check_bounds, value_at
from ssl_toolkit.step import StepContext, StepOutput


class Seen(NamedTuple):
    """What a network and its two heads make of views.

    Attributes:
        features: The backbone's output, of shape ``[batch, num_features]``.
        whole: Embeddings of the views, of shape ``[batch, width]``.
        maps: The backbone's last feature map, of shape ``[batch, places, channels]``.
        places: Embeddings of its places, of shape ``[batch, places, width]``.
    """

    features: Tensor
    whole: Tensor
    maps: Tensor
    places: Tensor


class DenseCL(QueueTask):
    """DenseCL: dense contrastive learning beside MoCo v2 (Wang et al. 2021, arXiv 2011.09157, section 3).

    Each place of the query's feature map finds the most similar place of the key's, by the backbones' own features, and
    is contrasted with it and with a queue of the mean embeddings of former maps. Backbone and teacher compute map and
    pooled features in one pass.

    Args:
        dense_weight: The paper's lambda, 0 to 1 (the paper: 0.5): what the places weigh beside the whole views. The
            published code leaves it at 0 for the first 1,000 steps, until features are good enough to match:
            ``{value: 0.5, end: 0, schedule: {class_path: ssl_toolkit.schedule.Constant, init_args: {warmup_steps:
            1000}}}`` raises it over them.
        **kwargs: See `pretext.base.QueueTask`, `pretext.base.TeacherTask`, `pretext.base.JointEmbeddingTask` and
            `ssl_toolkit.task.Task`.
    """

    def __init__(
        self,
        *,
        projector_widths: tuple[int, ...] = (512, 128),
        queue_size: int = 4096,
        dense_weight: float | Scheduled = 0.5,
        **kwargs: Any,
    ) -> None:
        super().__init__(projector_widths=projector_widths, queue_size=queue_size, **kwargs)
        check_bounds("model.dense_weight", dense_weight, 0, 1)
        smallest = min(self.sizes)
        _check_side(self.backbone.map_sides(smallest)[self.backbone.stages[-1]], smallest)
        self.dense_weight = dense_weight
        # a 1x1 convolution is a linear layer for which each place is a row
        self.dense_projector = mlp([self.backbone.stage_channels[-1], *projector_widths])
        self.dense_queue = FeatureQueue(queue_size, projector_widths[-1])
        networks = {name: getattr(self, name) for name in ("backbone", "projector", "dense_projector")}
        self.teacher = EMATeacher(**networks)

    def see(self, networks: Any, views: tuple[Tensor, ...], numbers: list[int]) -> dict[int, Seen]:
        """What networks make of some of the views, by their numbers.

        Args:
            networks: Has ``backbone``, ``projector`` and ``dense_projector``: the task itself, or its teacher.
            views: As `make_views` gives them.
            numbers: Of the views that pass.
        """
        passes, outputs = self.passes(numbers), []
        for group in passes:
            features, maps = networks.backbone(torch.cat([views[number] for number in group]), with_map=True)
            _check_side(maps.shape[-1], views[group[0]].shape[-1])
            rows = maps.flatten(2).mT
            places = networks.dense_projector(rows.flatten(0, 1)).unflatten(0, rows.shape[:2])
            outputs.append((features, networks.projector(features), rows, places))
        fields = [by_view(passes, list(each)) for each in zip(*outputs, strict=True)]
        return {number: Seen(*(each[number] for each in fields)) for number in numbers}

    def loss(self, views: tuple[Tensor, ...], context: StepContext) -> StepOutput:
        """Both InfoNCE losses; ``key_top1`` and ``place_top1``: how often the right key is nearer than the queue."""
        queried = self.see(self, views, self.student_views())
        with torch.no_grad():
            taught = self.see(self.teacher, views, sorted({teacher for teacher, _ in self.taught_pairs()}))
        temperature = value_at(self.temperature, context.progress)
        weight, found = value_at(self.dense_weight, context.progress), []
        for teacher, student in self.taught_pairs():
            query, key = queried[student], taught[teacher]
            whole, key_top1 = info_nce(query.whole, key.whole, temperature, self.queue.features)
            partners = similar_places(query.maps, key.maps)
            negatives = self.dense_queue.features
            dense, place_top1 = dense_info_nce(query.places, key.places, partners, temperature, negatives)
            found.append(torch.stack([(1 - weight) * whole + weight * dense, key_top1, place_top1]))
        loss, key_top1, place_top1 = torch.stack(found).mean(dim=0)
        kept = {
            "keys": torch.stack([each.whole for each in taught.values()], dim=1),
            "dense_keys": torch.stack([full_precision(each.places).mean(dim=1) for each in taught.values()], dim=1),
        }
        features = torch.cat([each.features for each in queried.values()])
        return StepOutput(loss, features, {"key_top1": key_top1.detach(), "place_top1": place_top1.detach()}, kept)

    def after_optimizer_step(self, progress: Progress, kept: dict[str, Tensor]) -> None:
        """Moves the teacher, and puts its keys into the queues."""
        super().after_optimizer_step(progress, kept)
        self.dense_queue.enqueue(kept["dense_keys"].flatten(0, 1))


def _check_side(side: int, size: int) -> None:
    """Refuses feature maps of one pixel, where there is nothing to match."""
    if side < 2:
        raise ValueError(
            f"views of {size} px leave a feature map of one pixel, of which nothing dense is learned; make them larger "
            "(model.view.size, progressive.start), or set backbone.stem: small"
        )
