"""Retrieval: whether the images most similar to an image are of its class, beside a random order of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float, Int64

# similarities sorted at a time: their ranks take five times as much
_MAX_SIMILARITIES = 1 << 22


class Retrieved(NamedTuple):
    """What each query found among the other images. A query is an image whose class has another image.

    Attributes:
        queries: int64 tensor of shape ``[num_queries]``: the places of the queries, ascending.
        hits: For each ``k`` a bool tensor of shape ``[num_queries]``: whether an image of the query's class is among
            its ``k`` nearest.
        precision: float64 tensor of shape ``[num_queries]``: average precision of each query, in ``(0, 1]``.
        chance_hits: For each ``k`` the expected share of queries that hit in a random order of the other images.
        chance_precision: The expected mean average precision of a random order.
        num_single: Images that are no queries, as they are the only ones of their class.
    """

    queries: Tensor
    hits: dict[int, Tensor]
    precision: Tensor
    chance_hits: dict[int, float]
    chance_precision: float
    num_single: int


def retrieve(
    features: Float[Tensor, "images width"],
    labels: Int64[Tensor, " images"],
    k: Sequence[int] = (1, 5, 10),
    *,
    seed: int = 0,
    count: Callable[[int], None] = lambda num: None,
) -> Retrieved:
    """Ranks for each query all other images by cosine similarity, and looks where those of its class stand.

    *Recall at k* of a query is 1 if its ``k`` nearest images hold one of its class (Musgrave et al. 2020, "A metric
    learning reality check", arXiv 2003.08505, call that so too; it is not the share of the class that is found).
    *Average precision* is the mean, over the images of the class, of the share of the class among all images up to
    that one.

    Images that are equally similar are ranked in an order drawn by the seed, the same for all queries: features that
    are all the same rank as chance does, whatever the order of the files.

    Args:
        features: Float tensor of shape ``[num_images, d]``; computed in float32.
        labels: int64 tensor of shape ``[num_images]``: classes from 0.
        k: Numbers of neighbours; one above ``num_images - 1`` counts as that.
        seed: Of the order of images that are equally similar.
        count: Called with the number of queries of each part when they are ranked.

    Returns:
        What each query found, and what a random order finds.

    Raises:
        ValueError: If no class has two images, an image has no label, a feature is not finite, or a ``k`` is below 1.
    """
    num = len(features)
    if num != len(labels) or not num or int(labels.min()) < 0:
        raise ValueError(f"retrieval needs a label for each image, got {num} images and {len(labels)} labels from 0")
    if not k or min(k) < 1:
        raise ValueError(f"retrieval needs numbers of neighbours of at least 1, got {tuple(k)}")
    if not bool(torch.isfinite(features).all()):
        raise ValueError("some features are not finite: the weights or the images hold NaN or infinity")
    counts = labels.bincount()[labels]
    if int(counts.max()) < 2:
        raise ValueError("retrieval needs a class with two test images: give more images (--data.test_fraction)")
    ks = sorted({min(each, num - 1) for each in k})
    order = torch.randperm(num, generator=torch.Generator().manual_seed(seed)).to(labels.device)
    unit, classes = F.normalize(features.float(), dim=1)[order], labels[order]
    queries = (counts > 1).nonzero()[:, 0]
    places = torch.empty_like(order)
    places[order] = torch.arange(num, device=order.device)
    sizes, times = counts[queries].unique(return_counts=True)

    def over_queries(chance: Callable[[int], float]) -> float:
        """The mean over the queries of what depends on how many right images there are for each."""
        values = [chance(size - 1) * number for size, number in zip(sizes.tolist(), times.tolist(), strict=True)]
        return sum(values) / len(queries)

    hits: dict[int, list[Tensor]] = {each: [] for each in ks}
    precision = []
    for part in places[queries].split(max(1, _MAX_SIMILARITIES // num)):
        similarity = unit[part] @ unit.T
        # the query itself comes last, and is left out
        similarity[torch.arange(len(part), device=part.device), part] = -math.inf
        ranked = similarity.argsort(dim=1, descending=True, stable=True)[:, :-1]
        is_right = classes[ranked] == classes[part][:, None]
        for each in ks:
            hits[each].append(is_right[:, :each].any(dim=1))
        found = is_right.cumsum(dim=1) / torch.arange(1, num, device=part.device, dtype=torch.float64)
        precision.append((found * is_right).sum(dim=1) / is_right.sum(dim=1))
        count(len(part))
    return Retrieved(
        queries,
        {each: torch.cat(parts) for each, parts in hits.items()},
        torch.cat(precision),
        {each: over_queries(lambda right, each=each: chance_of_a_hit(num - 1, right, each)) for each in ks},
        over_queries(lambda right: chance_precision(num - 1, right)),
        num - len(queries),
    )


def chance_of_a_hit(num: int, num_right: int, k: int) -> float:
    """The probability that the first ``k`` of ``num`` images in a random order hold one of the ``num_right``.

    ``1 - C(num - num_right, k) / C(num, k)``: that of drawing ``k`` without replacement.
    """
    missed = 1.0
    for drawn in range(min(k, num)):
        missed *= max(0, num - num_right - drawn) / (num - drawn)
    return 1.0 - missed


def chance_precision(num: int, num_right: int) -> float:
    """The expected average precision of a random order of ``num`` images of which ``num_right`` are right.

    ``(H + (num - H) * (num_right - 1) / (num - 1)) / num``, where ``H = 1 + 1/2 + ... + 1/num``. An image at rank i is
    right with probability ``num_right / num``; if it is, so are ``(num_right - 1) / (num - 1)`` of the ``i - 1`` before
    it on average, and the precision there is ``1/i`` plus ``(i - 1) / i`` of that. It is above the share of right
    images, by much where they are few.
    """
    harmonic = float((1 / torch.arange(1, num + 1, dtype=torch.float64)).sum())
    others = (num_right - 1) / (num - 1) if num > 1 else 0.0
    return (harmonic + (num - harmonic) * others) / num
