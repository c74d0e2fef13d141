"""SimCLR: two views of an image attract, views of different images repel.

Chen, Kornblith, Norouzi, Hinton: "A simple framework for contrastive learning of visual representations", ICML 2020,
arXiv 2002.05709.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor

from pretext.base import JointEmbeddingTask
from ssl_toolkit.losses import dcl, info_nce, nt_xent
from ssl_toolkit.schedule import Progress, Scheduled, check_bounds, value_at
from ssl_toolkit.step import StepContext, StepOutput

_SIGMA = 0.5  # of the weights of DCLW: Yeh et al. 2022, section 4


class SimCLR(JointEmbeddingTask):
    """SimCLR: contrastive learning of views (Chen et al. 2020, arXiv 2002.05709, algorithm 1).

    Section 3 of the paper finds crops and colour distortion together essential. With a regularizer that mixes images it
    is i-Mix (Lee et al. 2021, arXiv 2010.08887): the first view is mixed, see `ssl_toolkit.losses.info_nce`.

    Args:
        projector_widths: Widths of the projector's hidden and output layers (the paper: num_features and 128).
        temperature: The paper's tau, above 0. Table 5: 0.1 for ImageNet; figure B.7: 0.5 for CIFAR-10.
        contrast: ``nt_xent``, the paper's loss; ``dcl``, decoupled: without the partner among what it is compared with;
            or ``dclw``, in which far partners count more (Yeh et al. 2022, arXiv 2110.06848). They are made for small
            batches, and can't be mixed or smoothed.
        **kwargs: See `pretext.base.JointEmbeddingTask` and `ssl_toolkit.task.Task`.
    """

    traits = JointEmbeddingTask.traits | {"batch_statistics"}

    def __init__(
        self,
        *,
        projector_widths: tuple[int, ...] = (512, 128),
        temperature: float | Scheduled = 0.5,
        contrast: Literal["nt_xent", "dcl", "dclw"] = "nt_xent",
        **kwargs: Any,
    ) -> None:
        super().__init__(projector_widths=projector_widths, **kwargs)
        check_bounds("model.temperature", temperature, 0, math.inf, low_included=False)
        if contrast not in ("nt_xent", "dcl", "dclw"):
            raise ValueError(f"model.contrast is {contrast!r}, expected nt_xent, dcl or dclw")
        self.temperature = temperature
        self.contrast = contrast

    @property
    def takes_soft_targets(self) -> bool:
        """Whether the loss has targets that can be mixed and smoothed."""
        return self.contrast == "nt_xent"

    def initial_loss(self, batch_size: int) -> float:
        """Each of the 2N - 1 others is as likely the partner: ln(2N - 1). Decoupled, the partner is not counted."""
        return math.log(2 * batch_size - (1 if self.contrast == "nt_xent" else 2))

    @property
    def initial_loss_margin(self) -> tuple[float, float]:
        """Two views agree from the start, by up to 1 in the cosine; of two images they scatter by up to 0.25."""
        temperature = value_at(self.temperature, Progress())
        return 1 / temperature, 0.5 + 0.5 * (0.25 / temperature) ** 2

    def least_loss(self, batch_size: int) -> float:
        """Partners coincide, and the images lie as far apart as they can: at the corners of a regular simplex."""
        apart = batch_size / max(1, batch_size - 1)
        temperature = value_at(self.temperature, Progress())
        if self.contrast != "nt_xent":
            return math.log(max(1, 2 * batch_size - 2)) - apart / temperature
        return math.log1p((2 * batch_size - 2) * math.exp(-apart / temperature))

    def loss(self, views: tuple[Tensor, ...], context: StepContext) -> StepOutput:
        """NT-Xent of each pair of views, or i-Mix; ``pair_top1`` is how often the right partner is the nearest."""
        features, embedded = self.embed(views)
        temperature = value_at(self.temperature, context.progress)
        losses, hits = [], []
        for one, other in self.pairs():
            pair = embedded[one], embedded[other], temperature
            if context.mixing is not None and one == 0:
                loss, hit = info_nce(*pair, mixing=context.mixing, smoothing=context.smoothing)
            elif self.contrast == "nt_xent":
                loss, hit = nt_xent(*pair, smoothing=context.smoothing)
            else:
                loss, hit = dcl(*pair, sigma=_SIGMA if self.contrast == "dclw" else None)
            losses.append(loss)
            hits.append(hit)
        return StepOutput(torch.stack(losses).mean(), features, {"pair_top1": torch.stack(hits).mean()})
