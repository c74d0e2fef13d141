"""SimCLR: two views of an image attract, views of different images repel.

Chen, Kornblith, Norouzi, Hinton: "A simple framework for contrastive learning of visual representations", ICML 2020,
arXiv 2002.05709.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from pretext.base import PretextTask
from ssl_toolkit.augment import RandomView
from ssl_toolkit.batch import Images
from ssl_toolkit.distributed import gather
from ssl_toolkit.layers import full_precision, mlp
from ssl_toolkit.processes import rank
from ssl_toolkit.random import fold
from ssl_toolkit.task import StepOutput

# similarities held at a time: 2^24 float32 are 64 MiB
_MAX_SIMILARITIES = 1 << 24


class SimCLR(PretextTask):
    """Contrastive embedding of two views (Chen et al. 2020, arXiv 2002.05709, algorithm 1).

    Args:
        view: How a view is made; section 3 of the paper finds crops and colour distortion together essential.
        projector_widths: Widths of the projector's hidden and output layers (the paper: num_features and 128).
        temperature: The paper's tau, above 0. Table 5: 0.1 for ImageNet; figure B.7: 0.5 for CIFAR-10.
        forward_passes: 1: both views pass the network in one batch, which BatchNorm then normalises as one; 2: one
            view after the other, which is quicker on some machines.
        **kwargs: See `ssl_toolkit.task.Task`.
    """

    views_may_shrink = True
    speed_settings: ClassVar[dict[str, tuple[Any, ...]]] = {**PretextTask.speed_settings, "forward_passes": (1, 2)}

    def __init__(
        self,
        *,
        view: RandomView,
        projector_widths: tuple[int, ...] = (512, 128),
        temperature: float = 0.5,
        forward_passes: Literal[1, 2] = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if temperature <= 0:
            raise ValueError(f"model.temperature is {temperature}, expected a number above 0")
        if forward_passes not in (1, 2):
            raise ValueError(f"model.forward_passes is {forward_passes}, expected 1 or 2")
        self.view = view
        self.temperature = temperature
        self.forward_passes = forward_passes
        self.projector = mlp([self.backbone.num_features, *projector_widths])

    def initial_loss(self, batch_size: int) -> float:
        """Each of the 2N - 1 others is as likely the partner: ln(2N - 1)."""
        return math.log(2 * batch_size - 1)

    @property
    def initial_loss_margin(self) -> tuple[float, float]:
        """Two views of an image are alike from the start, by up to 1 in the cosine more than those of two images."""
        return 1 / self.temperature, 0.5

    def least_loss(self, batch_size: int) -> float:
        """Partners coincide, and the images lie as far apart as they can: at the corners of a regular simplex."""
        apart = batch_size / max(1, batch_size - 1)
        return math.log1p((2 * batch_size - 2) * math.exp(-apart / self.temperature))

    def make_views(self, images: Images, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Two views of each image, each of shape ``[batch, channels, size, size]``."""
        first, second = self.view(images, fold(keys, torch.arange(2, device=keys.device)[:, None]))
        return first, second

    def loss(self, views: tuple[Tensor, Tensor]) -> StepOutput:
        """NT-Xent of the projected views; ``pair_top1`` is how often the right partner is the nearest."""
        batches = views if self.forward_passes == 2 else (torch.cat(views),)
        features = [self.backbone(batch) for batch in batches]
        first, second = torch.cat([self.projector(each) for each in features]).chunk(2)
        # a validation batch may differ in size between processes: there each process contrasts its own images
        loss, pair_top1 = nt_xent(first, second, self.temperature, gathered=self.training)
        return StepOutput(loss, torch.cat(features), {"pair_top1": pair_top1})


def nt_xent(first: Tensor, second: Tensor, temperature: float, gathered: bool = True) -> tuple[Tensor, Tensor]:
    """Normalised temperature-scaled cross entropy (Chen et al. 2020, equation 1).

    Each embedding picks its partner among the 2N - 1 others. Under several processes the others are those of all
    processes, and the mean of the processes' losses and gradients is that of one process with the global batch.
    Computed in float32 at least, also under autocast. Of a large batch the matrix of all similarities is never held:
    it is made a few rows at a time, and again for the gradient, which changes nothing about the result.

    Args:
        first: Embeddings of the first views, of shape ``[batch, width]``; normalised here.
        second: Embeddings of the second views, likewise.
        temperature: Divides the cosine similarities.
        gathered: Contrast with the embeddings of all processes.

    Returns:
        The mean loss over this process's 2N embeddings, and the share of them whose partner is the most similar.
    """
    first, second = (F.normalize(full_precision(embeddings), dim=1) for embeddings in (first, second))
    num = len(first)
    all_first, all_second, offset = first, second, 0
    if gathered:
        all_first, all_second, offset = gather(first), gather(second), rank() * num
    num_all = len(all_first)

    anchors, others = torch.cat([first, second]), torch.cat([all_first, all_second])
    places = torch.arange(num, device=first.device) + offset
    itself = torch.cat([places, places + num_all])
    partner = torch.cat([places + num_all, places])
    rows = max(1, _MAX_SIMILARITIES // len(others))
    parts = []
    for chunk in zip(anchors.split(rows), itself.split(rows), partner.split(rows), strict=True):
        if rows >= len(anchors):
            parts.append(_pick_partner(others, temperature, *chunk))
        else:
            parts.append(checkpoint(_pick_partner, others, temperature, *chunk, use_reentrant=False))
    losses, hits = zip(*parts, strict=True)
    return torch.stack(losses).sum() / len(anchors), torch.stack(hits).sum() / len(anchors)


def _pick_partner(
    others: Tensor, temperature: float, anchors: Tensor, itself: Tensor, partner: Tensor
) -> tuple[Tensor, Tensor]:
    """The summed cross entropy of some of the embeddings, and how many of them have their partner the nearest."""
    with torch.autocast(anchors.device.type, enabled=False):
        similarity = anchors @ others.T / temperature
        similarity = similarity.scatter(1, itself[:, None], float("-inf"))
        hits = (similarity.detach().argmax(dim=1) == partner).sum()
        return F.cross_entropy(similarity, partner, reduction="sum"), hits
