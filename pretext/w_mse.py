"""W-MSE: embeddings are whitened over the batch, so that they can't collapse; then an image's views are to agree.

Ermolov, Siarohin, Sangineto, Sebe: "Whitening for self-supervised representation learning", ICML 2021, arXiv
2007.06346.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pretext.base import JointEmbeddingTask
from ssl_toolkit.distributed.collectives import gather, gather_uneven
from ssl_toolkit.losses import symmetric_cosine, whiten
from ssl_toolkit.random import fold_in
from ssl_toolkit.step import StepContext, StepOutput


class WMSE(JointEmbeddingTask):
    """W-MSE: whitening and mean squared error (Ermolov et al. 2021, arXiv 2007.06346, section 3).

    The embeddings of each view are divided by chance into parts of the batch, each of which is whitened by itself;
    parts should have at least twice as many images as an embedding has numbers. The batch is that of all processes.

    Args:
        projector_widths: Widths of the projector's hidden and output layers (the paper: 1024 and 64 for small images,
            128 for ImageNet).
        part: Images that are whitened together, or some more where the batch is no multiple; more than the embedding's
            width (the paper: 128 for 64 dimensions).
        repeats: How often the batch is divided again; the loss is the mean, at least 1 (the paper: 1 for CIFAR-10).
        eps: Shrinks the covariance towards the identity, 0 to 1; above 0, so that it can always be inverted.
        **kwargs: See `pretext.base.JointEmbeddingTask` and `ssl_toolkit.task.Task`.
    """

    traits = JointEmbeddingTask.traits | {"batch_statistics"}
    # whitening takes it away again
    projector_has_bias = False

    def __init__(
        self,
        *,
        projector_widths: tuple[int, ...] = (1024, 64),
        part: int = 128,
        repeats: int = 1,
        eps: float = 1e-4,
        **kwargs: Any,
    ) -> None:
        super().__init__(projector_widths=projector_widths, **kwargs)
        width = projector_widths[-1]
        if part <= width:
            raise ValueError(
                f"model.part is {part}, expected more than the embedding's width (model.projector_widths ends with "
                f"{width}), twice as many as a rule"
            )
        if repeats < 1:
            raise ValueError(f"model.repeats is {repeats}, expected at least 1")
        if not 0 < eps < 1:
            raise ValueError(f"model.eps is {eps}, expected above 0 and below 1")
        self.part, self.repeats, self.eps = part, repeats, eps
        self.width = width

    def check_batch(self, size: int) -> None:
        """Refuses batches that are too small to be whitened."""
        super().check_batch(size)
        if size <= self.width:
            raise ValueError(
                f"W-MSE whitens {self.width} dimensions over a batch of {size} images, which are too few: set "
                f"data.batch_size above {self.width} (of all processes together), or end model.projector_widths with "
                "less"
            )

    def initial_loss(self, batch_size: int) -> float:
        """Whitened views have nothing to do with each other: 2 - 2 cos 90 degrees."""
        return 2.0

    # views may agree from the start
    initial_loss_margin = (2.0, 0.5)

    def loss(self, views: tuple[Tensor, ...], context: StepContext) -> StepOutput:
        """The mean squared distance of whitened, normalised views; ``cosine`` is how much they agree."""
        features, embedded = self.embed(views)
        keys = self.keys(context.batch)
        everywhere = {number: _gathered(each) for number, each in embedded.items()}
        all_keys = _gathered(keys)
        losses = []
        for repeat in range(self.repeats):
            # by the images' keys, so that the parts do not depend on the number of processes
            order = fold_in(all_keys, f"part {repeat}").argsort()
            parts = order.tensor_split(max(1, len(order) // self.part))
            whitened = {
                number: torch.cat([whiten(each[rows], self.eps) for rows in parts])
                for number, each in everywhere.items()
            }
            losses += [symmetric_cosine(whitened[one], whitened[other]) for one, other in self.pairs()]
        loss = torch.stack(losses).mean()
        return StepOutput(loss, features, {"cosine": 1 - loss.detach() / 2})


def _gathered(x: Tensor) -> Tensor:
    return gather(x) if torch.is_grad_enabled() else gather_uneven(x)[0]
