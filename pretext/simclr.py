"""SimCLR: two views of an image attract, views of different images repel.

Chen, Kornblith, Norouzi, Hinton: "A simple framework for contrastive learning of visual representations", ICML 2020,
arXiv 2002.05709.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from pretext.base import TwoViewTask
from ssl_toolkit.distributed.collectives import gather
from ssl_toolkit.distributed.ranks import rank
from ssl_toolkit.losses.full_precision import full_precision
from ssl_toolkit.losses.soft_targets import Mixing, SoftTargets, soft_cross_entropy, soften
from ssl_toolkit.task import StepOutput

# similarities held at a time: 2^24 float32 are 64 MiB
_MAX_SIMILARITIES = 1 << 24


class SimCLR(TwoViewTask):
    """Contrastive embedding of two views (Chen et al. 2020, arXiv 2002.05709, algorithm 1).

    Section 3 of the paper finds crops and colour distortion together essential. With a regularizer that mixes images it
    is i-Mix (Lee et al. 2021, arXiv 2010.08887), see `i_mix`.

    Args:
        projector_widths: Widths of the projector's hidden and output layers (the paper: num_features and 128).
        temperature: The paper's tau, above 0. Table 5: 0.1 for ImageNet; figure B.7: 0.5 for CIFAR-10.
        **kwargs: See `pretext.base.TwoViewTask` and `ssl_toolkit.task.Task`.
    """

    takes_soft_targets = True

    def __init__(
        self, *, projector_widths: tuple[int, ...] = (512, 128), temperature: float = 0.5, **kwargs: Any
    ) -> None:
        super().__init__(projector_widths=projector_widths, **kwargs)
        if temperature <= 0:
            raise ValueError(f"model.temperature is {temperature}, expected a number above 0")
        self.temperature = temperature

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

    def mixed_rows(self, partners: Tensor) -> tuple[Tensor, Tensor]:
        """The first views are mixed; the second ones are what they are compared with."""
        images = torch.arange(len(partners), device=partners.device)
        return torch.cat([images, images]), torch.cat([partners, images + len(images)])

    def loss(self, views: tuple[Tensor, Tensor]) -> StepOutput:
        """NT-Xent or i-Mix of the projected views; ``pair_top1`` is how often the right partner is the nearest."""
        features, first, second = self.embed(views)
        # a validation batch may differ in size between processes: there each process contrasts its own images
        arguments = (first, second, self.temperature, self.training, self.smoothing)
        loss, pair_top1 = nt_xent(*arguments) if self.mixing is None else i_mix(self.mixing, *arguments)
        return StepOutput(loss, features, {"pair_top1": pair_top1})


def nt_xent(
    first: Tensor, second: Tensor, temperature: float, gathered: bool = True, smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
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
        smoothing: Share of the target that is spread evenly over the 2N - 1 others.

    Returns:
        The mean loss over this process's 2N embeddings, and the share of them whose partner is the most similar.
    """
    first, all_first, places = _normalized(first, gathered)
    second, all_second, _ = _normalized(second, gathered)
    itself = torch.cat([places, places + len(all_first)])
    partner = torch.cat([places + len(all_first), places])
    targets = soften(partner, smoothing=smoothing)
    return _contrast(torch.cat([first, second]), torch.cat([all_first, all_second]), temperature, targets, itself)


def i_mix(
    mixing: Mixing, first: Tensor, second: Tensor, temperature: float, gathered: bool = True, smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
    """i-Mix of the N-pair loss (Lee et al. 2021, arXiv 2010.08887, section 3).

    Each mixed first view picks among the N second views, which are not mixed: its own by its share, its partner's by
    the rest. All else is as in `nt_xent`.

    Args:
        mixing: Of the first views; partners are images of this process.
        first: Embeddings of the mixed first views, of shape ``[batch, width]``; normalised here.
        second: Embeddings of the second views, likewise.
        temperature: Divides the cosine similarities.
        gathered: Contrast with the embeddings of all processes.
        smoothing: Share of the target that is spread evenly over the N second views.

    Returns:
        The mean loss over this process's N mixed views, and the share of them to which the second view of what they are
        most of is the most similar.
    """
    second, all_second, places = _normalized(second, gathered)
    first = F.normalize(full_precision(first), dim=1)
    return _contrast(first, all_second, temperature, soften(places, mixing, smoothing), None)


def _normalized(embeddings: Tensor, gathered: bool) -> tuple[Tensor, Tensor, Tensor]:
    """This process's embeddings of unit length, those of all processes, and the places of the former in the latter."""
    own = F.normalize(full_precision(embeddings), dim=1)
    places = torch.arange(len(own), device=own.device)
    return (own, gather(own), places + rank() * len(own)) if gathered else (own, own, places)


def _contrast(
    anchors: Tensor, others: Tensor, temperature: float, targets: SoftTargets, itself: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The anchors' mean cross entropy, and the share of them that have their heaviest target the nearest."""
    rows = max(1, _MAX_SIMILARITIES // len(others))
    parts = []
    for start in range(0, len(anchors), rows):
        chosen = slice(start, start + rows)
        shares = None if targets.shares is None else targets.shares[chosen]
        chunk = targets._replace(classes=targets.classes[chosen], shares=shares)
        arguments = (others, temperature, anchors[chosen], chunk, None if itself is None else itself[chosen])
        if rows >= len(anchors):
            parts.append(_pick(*arguments))
        else:
            parts.append(checkpoint(_pick, *arguments, use_reentrant=False))
    losses, hits = zip(*parts, strict=True)
    return torch.stack(losses).sum() / len(anchors), torch.stack(hits).sum() / len(anchors)


def _pick(
    others: Tensor, temperature: float, anchors: Tensor, targets: SoftTargets, itself: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The summed cross entropy of some of the anchors, and how many of them have their target the nearest."""
    with torch.autocast(anchors.device.type, enabled=False):
        similarity = anchors @ others.T / temperature
        if itself is not None:
            similarity = similarity.scatter(1, itself[:, None], float("-inf"))
        hits = (similarity.detach().argmax(dim=1) == targets.heaviest).sum()
        return soft_cross_entropy(similarity, targets, reduction="sum"), hits
