"""Clustering: whether k-means on the features finds the classes, without a label."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float, Int64

# random assignments over which the information of chance is averaged
_CHANCE_DRAWS = 20
# distances held at a time
_MAX_DISTANCES = 1 << 23


class Clusters(NamedTuple):
    """Result of `k_means`.

    Attributes:
        assigned: int64 tensor of shape ``[num_images]``: the cluster of each image, from 0.
        centres: float32 tensor of shape ``[num_clusters, d]``.
        inertia: Sum of the squared distances of the images to their centres.
        iterations: Of the best restart.
    """

    assigned: Tensor
    centres: Tensor
    inertia: float
    iterations: int


def k_means(
    features: Float[Tensor, "images width"],
    num_clusters: int,
    *,
    restarts: int = 10,
    max_iterations: int = 300,
    seed: int = 0,
    count: Callable[[int], None] = lambda num: None,
) -> Clusters:
    """K-means: Lloyd's iterations from several seeded starts (k-means++), of which the one of lowest inertia is kept.

    Arthur and Vassilvitskii 2007, "k-means++: The advantages of careful seeding". A cluster that loses all its images
    gets the image that is farthest from its centre. The iterations end when no image changes its cluster.

    Args:
        features: Float tensor of shape ``[num_images, d]``; computed in float32.
        num_clusters: How many clusters, from 1 to ``num_images``.
        restarts: How many starts.
        max_iterations: Most iterations of each.
        seed: Of the starts.
        count: Called with 1 after each start.

    Raises:
        ValueError: If there are fewer images than clusters, a feature is not finite, or a number is below 1.
    """
    if not 1 <= num_clusters <= len(features):
        raise ValueError(f"k-means needs from 1 to {len(features)} clusters for as many images, got {num_clusters}")
    if restarts < 1 or max_iterations < 1:
        raise ValueError(f"k-means needs a start and an iteration, got {restarts} and {max_iterations}")
    if not bool(torch.isfinite(features).all()):
        raise ValueError("some features are not finite: the weights or the images hold NaN or infinity")
    mean = features.float().mean(dim=0)
    # a mean that all features share would cost the distances their digits
    x = features.float() - mean
    generator = torch.Generator().manual_seed(seed)
    best = None
    for _ in range(restarts):
        found = _lloyd(x, _plus_plus(x, num_clusters, generator), max_iterations)
        if best is None or found.inertia < best.inertia:
            best = found
        count(1)
    assert best is not None
    return best._replace(centres=best.centres + mean)


def _plus_plus(x: Tensor, num_clusters: int, generator: torch.Generator) -> Tensor:
    """Centres: each is an image, drawn with a probability as its squared distance to the nearest one before."""
    place = int(torch.randint(len(x), (1,), generator=generator))
    chosen, nearest = [place], (x - x[place]).square().sum(dim=1).double()
    while len(chosen) < num_clusters:
        total = nearest.cumsum(0)
        # where all images are at a centre, any of them will do
        point = float(torch.rand(1, generator=generator, dtype=torch.float64)) * float(total[-1])
        place = min(int(torch.searchsorted(total, point, right=True)), len(x) - 1)
        chosen.append(place)
        nearest = torch.minimum(nearest, (x - x[place]).square().sum(dim=1).double())
    return x[chosen]


def _lloyd(x: Tensor, centres: Tensor, max_iterations: int) -> Clusters:
    num_clusters, assigned, iterations = len(centres), torch.full((len(x),), -1, device=x.device), 0
    for iterations in range(1, max_iterations + 1):  # noqa: B007 - told afterwards
        distances, nearest = _nearest(x, centres)
        if torch.equal(nearest, assigned):
            break
        assigned = nearest
        counts = assigned.bincount(minlength=num_clusters)
        for empty in (counts == 0).nonzero()[:, 0]:
            far = distances.argmax()
            if not distances[far] > 0:
                break  # there are fewer different images than clusters
            counts[assigned[far]] -= 1
            assigned[far], distances[far], counts[empty] = empty, 0.0, 1
        sums = torch.zeros_like(centres, dtype=torch.float64).index_add_(0, assigned, x.double())
        centres = torch.where(counts[:, None] > 0, (sums / counts.clamp(min=1)[:, None]).float(), centres)
    distances, assigned = _nearest(x, centres)
    return Clusters(assigned, centres, float(distances.double().sum()), iterations)


def _nearest(x: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """The squared distance of each image to the nearest centre, and which one that is."""
    squares = centres.square().sum(dim=1)
    parts = [
        (squares - 2 * part @ centres.T).min(dim=1) for part in x.split(max(1, _MAX_DISTANCES // max(1, len(centres))))
    ]
    assigned = torch.cat([part.indices for part in parts])
    return (x - centres[assigned]).square().sum(dim=1), assigned


def normalized_mutual_information(first: Int64[Tensor, " images"], second: Int64[Tensor, " _"]) -> float:
    """NMI of two partitions of the same images: their mutual information over the mean of their entropies.

    Strehl and Ghosh 2002, with the arithmetic mean (Vinh, Epps and Bailey 2010, JMLR 11, table 2). 1 is the same
    partition up to names. It is not 0 for random clusters, and rises with their number: see `chance_information`.

    Returns:
        A number in ``[0, 1]``; 1 if both are a single cluster.

    Raises:
        ValueError: If the two are not of the same, non-empty, length.
    """
    joint = _contingency(first, second) / len(first)
    rows, columns = joint.sum(dim=1), joint.sum(dim=0)
    entropies = -sum(float(torch.xlogy(part, part).sum()) for part in (rows, columns))
    if entropies <= 0:
        return 1.0
    information = float((torch.xlogy(joint, joint)).sum()) + entropies
    return min(1.0, max(0.0, 2 * information / entropies))


def adjusted_rand_index(first: Int64[Tensor, " images"], second: Int64[Tensor, " _"]) -> float:
    """ARI of two partitions of the same images: pairs on which both agree, above chance (Hubert and Arabie 1985).

    Returns:
        1 for the same partition up to names, 0 on average for random ones of the same sizes; at least -0.5.

    Raises:
        ValueError: If the two are not of the same, non-empty, length.
    """
    counts = _contingency(first, second)

    def pairs(numbers: Tensor) -> float:
        return float((numbers * (numbers - 1) / 2).sum())

    together, rows, columns = pairs(counts), pairs(counts.sum(dim=1)), pairs(counts.sum(dim=0))
    total = pairs(counts.sum()[None])
    expected, most = rows * columns / total if total else 0.0, (rows + columns) / 2
    # both are one cluster, or both have one for each image
    return 1.0 if math.isclose(most, expected) else (together - expected) / (most - expected)


def chance_information(first: Int64[Tensor, " images"], second: Int64[Tensor, " _"], seed: int = 0) -> float:
    """The mean of `normalized_mutual_information` over 20 random orders of the first: clusters of the same sizes."""
    generator = torch.Generator().manual_seed(seed)
    orders = (torch.randperm(len(first), generator=generator).to(first.device) for _ in range(_CHANCE_DRAWS))
    return sum(normalized_mutual_information(first[order], second) for order in orders) / _CHANCE_DRAWS


def _contingency(first: Tensor, second: Tensor) -> Tensor:
    """float64 ``[clusters, clusters]``: how many images are in a cluster of the first and in one of the second."""
    if len(first) != len(second) or not len(first):
        raise ValueError(f"two partitions of the same images are needed, got {len(first)} and {len(second)} images")
    width = int(second.max()) + 1
    counts = (first * width + second).bincount(minlength=(int(first.max()) + 1) * width)
    return counts.view(-1, width).double()
