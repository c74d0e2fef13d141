"""MoCo v2: InfoNCE with a momentum encoder and a queue of negatives.

Chen, Fan, Girshick, He: "Improved baselines with momentum contrastive learning", 2020, arXiv 2003.04297. The queue and
the momentum encoder: He, Fan, Wu, Xie, Girshick, CVPR 2020, arXiv 1911.05722.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pretext.base import QueueTask
from ssl_toolkit.losses import info_nce
from ssl_toolkit.schedule import value_at
from ssl_toolkit.step import StepContext, StepOutput


class MoCoV2(QueueTask):
    """MoCo v2: InfoNCE with a queue of negatives (He et al. 2020, arXiv 1911.05722; Chen et al. 2020, arXiv
    2003.04297).

    Args:
        **kwargs: See `pretext.base.QueueTask`, `pretext.base.TeacherTask`, `pretext.base.JointEmbeddingTask` and
            `ssl_toolkit.task.Task`.
    """

    def loss(self, views: tuple[Tensor, ...], context: StepContext) -> StepOutput:
        """InfoNCE; ``key_top1`` is how often the right key is nearer than the whole queue."""
        features, queries = self.embed(views)
        keys = self.teach(views)
        temperature = value_at(self.temperature, context.progress)
        found = [
            torch.stack(info_nce(queries[student], keys[teacher], temperature, self.queue.features))
            for teacher, student in self.taught_pairs()
        ]
        loss, key_top1 = torch.stack(found).mean(dim=0)
        kept = {"keys": torch.stack(list(keys.values()), dim=1)}
        return StepOutput(loss, features, {"key_top1": key_top1.detach()}, kept)
