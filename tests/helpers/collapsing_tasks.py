"""Pretext tasks that collapse, each in one of the two ways."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretext.simclr import SimCLR
from ssl_toolkit.step import StepContext, StepOutput


class Agreement(SimCLR):
    """SimSiam (Chen and He 2021, arXiv 2011.10566) without its stop-gradient: two views shall agree, and no more."""

    def __init__(self, *, projector_widths: list[int], **kwargs) -> None:
        super().__init__(projector_widths=projector_widths, **kwargs)
        width = projector_widths[-1]
        self.predictor = nn.Sequential(nn.Linear(width, width // 4), nn.ReLU(), nn.Linear(width // 4, width))

    def loss(self, views: tuple[Tensor, ...], context: StepContext) -> StepOutput:
        features = self.backbone(torch.cat(views))
        embeddings = self.projector(features)
        first, second = embeddings.chunk(2)
        ahead, behind = self.predictor(embeddings).chunk(2)
        loss = -(F.cosine_similarity(ahead, second).mean() + F.cosine_similarity(behind, first).mean()) / 2
        return StepOutput(loss, features, {})


class Narrow(SimCLR):
    """SimCLR whose projector has two units on the way: its embeddings lie in two dimensions, however long it learns."""

    def __init__(self, *, projector_widths: list[int], **kwargs) -> None:
        super().__init__(projector_widths=projector_widths, **kwargs)
        width = projector_widths[-1]
        self.projector = nn.Sequential(nn.Linear(self.backbone.num_features, 2), nn.Linear(2, width, bias=False))
