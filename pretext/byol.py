"""BYOL: a student predicts its teacher's embedding of another view; there are no negatives.

Grill et al.: "Bootstrap your own latent: a new approach to self-supervised learning", NeurIPS 2020, arXiv 2006.07733.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pretext.base import TeacherTask
from ssl_toolkit.losses import negative_cosine
from ssl_toolkit.modules import mlp
from ssl_toolkit.step import StepContext, StepOutput


class BYOL(TeacherTask):
    """BYOL: regression of a teacher's embeddings (Grill et al. 2020, arXiv 2006.07733, section 3.1).

    Each view is predicted from every other one. What keeps the embeddings apart is the predictor together with the
    teacher, which moves slowly: without one of them they collapse.

    Args:
        projector_widths: Widths of the projector's hidden and output layers (the paper: 4096 and 256).
        predictor_width: Width of the predictor's hidden layer (the paper: 4096).
        **kwargs: See `pretext.base.TeacherTask`, `pretext.base.JointEmbeddingTask` and `ssl_toolkit.task.Task`.
    """

    # the normalisation of the predictor's hidden layer would take it away again: its gradient would be rounding alone
    projector_has_bias = False
    # a prediction may begin anywhere between the teacher's direction and the opposite one
    initial_loss_margin = (2.0, 2.0)

    def __init__(
        self, *, projector_widths: tuple[int, ...] = (1024, 256), predictor_width: int = 1024, **kwargs: Any
    ) -> None:
        super().__init__(projector_widths=projector_widths, **kwargs)
        self.predictor = mlp([projector_widths[-1], predictor_width, projector_widths[-1]])

    def initial_loss(self, batch_size: int) -> float:
        """Predictions have nothing to do with their targets: 2 - 2 cos 90 degrees."""
        return 2.0

    def loss(self, views: tuple[Tensor, ...], context: StepContext) -> StepOutput:
        """The mean over all pairs of views; ``cosine`` is how much predictions agree with the teacher, -1 to 1."""
        features, embedded = self.embed(views)
        taught = self.teach(views)
        predicted = {number: self.predictor(each) for number, each in embedded.items()}
        losses = [negative_cosine(predicted[student], taught[teacher]) for teacher, student in self.taught_pairs()]
        loss = torch.stack(losses).mean()
        return StepOutput(loss, features, {"cosine": 1 - loss.detach() / 2})
