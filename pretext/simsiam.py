"""SimSiam: each view predicts the other's embedding, of which no gradient is taken; no negatives, no teacher.

Chen, He: "Exploring simple Siamese representation learning", CVPR 2021, arXiv 2011.10566.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from pretext.base import JointEmbeddingTask
from ssl_toolkit.losses import full_precision, negative_cosine
from ssl_toolkit.modules import mlp
from ssl_toolkit.step import StepContext, StepOutput


class SimSiam(JointEmbeddingTask):
    """SimSiam: Siamese networks with a stop-gradient (Chen and He 2021, arXiv 2011.10566, algorithm 1).

    What keeps the embeddings apart is that no gradient is taken through what is predicted (section 4.1). With
    ``target: mean`` and several views it is FastSiam (Pototzky, Sultan, Schmidt-Thieme, "FastSiam: resource-efficient
    self-supervised learning on a single GPU", GCPR 2022).

    Args:
        projector_widths: Widths of the projector's hidden and output layers (the paper: 2048, three times).
        predictor_width: Width of the predictor's hidden layer (the paper: 512, a quarter of the output).
        target: What a view predicts: ``each`` of the other large views one by one, or their ``mean``, which is steadier
            (FastSiam, with four views).
        **kwargs: See `pretext.base.JointEmbeddingTask` and `ssl_toolkit.task.Task`.
    """

    stops_gradients = True
    projector_ends_with_norm = True
    # a prediction may begin anywhere between the target's direction and the opposite one
    initial_loss_margin = (2.0, 2.0)

    def __init__(
        self,
        *,
        projector_widths: tuple[int, ...] = (2048, 2048, 2048),
        predictor_width: int = 512,
        target: Literal["each", "mean"] = "each",
        **kwargs: Any,
    ) -> None:
        super().__init__(projector_widths=projector_widths, **kwargs)
        if target not in ("each", "mean"):
            raise ValueError(f"model.target is {target!r}, expected each or mean")
        self.target = target
        self.predictor = mlp([projector_widths[-1], predictor_width, projector_widths[-1]])

    def initial_loss(self, batch_size: int) -> float:
        """Predictions have nothing to do with their targets: 2 - 2 cos 90 degrees."""
        return 2.0

    def loss(self, views: tuple[Tensor, ...], context: StepContext) -> StepOutput:
        """The mean over the views; ``cosine`` is how much predictions agree with their targets, -1 to 1."""
        features, embedded = self.embed(views)
        targets: dict[int, list[Tensor]] = {}
        for target, other in self.directed_pairs():
            targets.setdefault(other, []).append(full_precision(embedded[target].detach()))
        losses = []
        for number, found in targets.items():
            predicted = self.predictor(embedded[number])
            aims = [torch.stack(found).mean(dim=0)] if self.target == "mean" else found
            losses += [negative_cosine(predicted, aim) for aim in aims]
        loss = torch.stack(losses).mean()
        return StepOutput(loss, features, {"cosine": 1 - loss.detach() / 2})
