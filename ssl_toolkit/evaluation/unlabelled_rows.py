"""Optional parts of an evaluation that train nothing on labels: retrieval and clustering of the test images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch.nn.functional as F
from torch import Tensor

from ssl_toolkit.evaluation.clustering import (
    adjusted_rand_index,
    chance_information,
    k_means,
    normalized_mutual_information,
)
from ssl_toolkit.evaluation.intervals import Interval, bootstrap_interval, confidence_interval
from ssl_toolkit.evaluation.progress import Steps
from ssl_toolkit.evaluation.retrieval import Retrieved, retrieve
from ssl_toolkit.evaluation.shortcut_rows import Weights

KS = (1, 5, 10)
RESTARTS = 10


@dataclass(frozen=True)
class RetrievalRow:
    """Retrieval among the test images by the cosine of their pooled features, with one set of weights.

    Attributes:
        weights: ``given`` or ``random``.
        recall: For each number of neighbours the share of queries that have one of their class among them, with its
            95 % interval over the queries (Wilson's).
        mean_precision: Mean average precision, with its 95 % bootstrap interval over the queries.
    """

    weights: Literal["given", "random"]
    recall: dict[int, Interval]
    mean_precision: Interval


@dataclass(frozen=True)
class Retrieval:
    """Retrieval with the given weights and with random ones.

    Attributes:
        num_queries: Test images that were looked up, each among all others.
        num_single: Test images that were not, as they are the only ones of their class.
        chance_recall: For each number of neighbours what a random order reaches on average.
        chance_precision: The mean average precision that it reaches on average.
        rows: One for the given and one for the random weights.
        difference: Mean average precision with the given weights minus that with random weights, with its paired 95 %
            bootstrap interval over the queries; None without random weights.
    """

    num_queries: int
    num_single: int
    chance_recall: dict[int, float]
    chance_precision: float
    rows: list[RetrievalRow]
    difference: Interval | None


@dataclass(frozen=True)
class ClusterRow:
    """K-means on the pooled features of the test images, scaled to length 1, with one set of weights.

    Attributes:
        weights: ``given`` or ``random``.
        nmi: Normalised mutual information of clusters and classes (arithmetic mean), in ``[0, 1]``.
        chance_nmi: The same of clusters of the same sizes with the images drawn at random.
        ari: Adjusted Rand index: 0 at chance, 1 for the same partition.
        inertia: Mean squared distance of the features to their centres.
    """

    weights: Literal["given", "random"]
    nmi: float
    chance_nmi: float
    ari: float
    inertia: float


@dataclass(frozen=True)
class Clustering:
    """Clusters with the given weights and with random ones.

    Attributes:
        num_clusters: As many as there are classes among the test images.
        num_images: How many images were clustered.
        restarts: Of k-means, of which the one of lowest inertia counts.
        rows: One for the given and one for the random weights.
    """

    num_clusters: int
    num_images: int
    restarts: int
    rows: list[ClusterRow]


class Unlabelled(NamedTuple):
    """What `measure_unlabelled` has found; None for what was not asked for."""

    retrieval: Retrieval | None
    clustering: Clustering | None


def check_unlabelled(retrieval: bool, clustering: bool, labels: Tensor) -> None:
    """Raises a ValueError for what cannot be measured, before features take their time."""
    if not (retrieval or clustering):
        return
    counts = labels.bincount()
    if retrieval and int(counts.max()) < 2:
        raise ValueError(
            "--retrieval needs a class with two test images, but each has one; give more images, or a larger "
            "--data.test_fraction"
        )
    if clustering and int((counts > 0).sum()) < 2:
        raise ValueError("--clustering needs test images of at least two classes, but they are all of one")


def measure_unlabelled(
    features: Mapping[Weights, Tensor], labels: Tensor, retrieval: bool, clustering: bool, seed: int, steps: Steps
) -> Unlabelled:
    """Retrieval and clustering of the test images.

    Args:
        features: Pooled features ``[num_images, d]`` of the test images, by weights.
        labels: int64 tensor of shape ``[num_images]``: their classes.
        retrieval: Whether to measure retrieval.
        clustering: Whether to measure clusters.
        seed: Of what is drawn.
        steps: Told of each step.
    """
    found = {}
    if retrieval:
        for weights, each in features.items():
            steps.begin(f"retrieval with {weights} weights", len(labels))
            found[weights] = retrieve(each, labels, KS, seed=seed, count=steps.advance)
    clusters = _clusters(features, labels, seed, steps) if clustering else None
    return Unlabelled(_retrieval(found, seed) if retrieval else None, clusters)


def _retrieval(found: Mapping[Weights, Retrieved], seed: int) -> Retrieval:
    rows = [
        RetrievalRow(
            weights,
            {k: confidence_interval(hits) for k, hits in each.hits.items()},
            _mean_interval(each.precision, seed),
        )
        for weights, each in found.items()
    ]
    given = found["given"]
    difference = None
    if "random" in found:
        difference = _mean_interval(given.precision - found["random"].precision, seed)
    return Retrieval(len(given.queries), given.num_single, given.chance_hits, given.chance_precision, rows, difference)


def _mean_interval(values: Tensor, seed: int) -> Interval:
    return bootstrap_interval(lambda drawn, _: float(drawn.mean()), values, values, seed=seed)


def _clusters(features: Mapping[Weights, Tensor], labels: Tensor, seed: int, steps: Steps) -> Clustering:
    num_clusters, rows = labels.unique().numel(), []
    for weights, each in features.items():
        steps.begin(f"k-means with {weights} weights", RESTARTS)
        unit = F.normalize(each.float(), dim=1)
        found = k_means(unit, num_clusters, restarts=RESTARTS, seed=seed, count=steps.advance)
        rows.append(
            ClusterRow(
                weights,
                normalized_mutual_information(found.assigned, labels),
                chance_information(found.assigned, labels, seed),
                adjusted_rand_index(found.assigned, labels),
                found.inertia / len(labels),
            )
        )
    return Clustering(num_clusters, len(labels), RESTARTS, rows)


def unlabelled_words(retrieval: Retrieval | None, clustering: Clustering | None) -> list[str]:
    """What the figures say, as lines of text."""
    words = []
    if retrieval is not None:
        single = f"; {retrieval.num_single:,} are the only ones of their class and left out" * bool(
            retrieval.num_single
        )
        words.append(
            f"retrieval: each of {retrieval.num_queries:,} test images among the others, by the cosine of pooled "
            f"features{single}"
        )
        for row in retrieval.rows:
            recall = ", ".join(f"{_of(each)} at {k}" for k, each in row.recall.items())
            words.append(f"  {row.weights} weights: recall {recall}; mean average precision {_of(row.mean_precision)}")
        chance = ", ".join(f"{100 * each:.1f} at {k}" for k, each in retrieval.chance_recall.items())
        words.append(
            f"  a random order: recall {chance}; mean average precision {100 * retrieval.chance_precision:.1f} %"
        )
        if retrieval.difference is not None:
            value, low, high = (100 * each for each in retrieval.difference)
            words.append(
                f"  mean average precision over random weights: {value:+.1f} points (95 % interval {low:+.1f} to "
                f"{high:+.1f})"
            )
    if clustering is not None:
        words.append(
            f"clustering: {clustering.num_clusters} clusters of {clustering.num_images:,} test images, the best of "
            f"{clustering.restarts} restarts of k-means"
        )
        words += [
            f"  {row.weights} weights: NMI {row.nmi:.3f} (random clusters of these sizes {row.chance_nmi:.3f}), ARI "
            f"{row.ari:.3f} (random clusters 0)"
            for row in clustering.rows
        ]
    return words


def _of(interval: Interval) -> str:
    value, low, high = (100 * each for each in interval)
    return f"{value:.1f} % ({low:.1f}-{high:.1f})"
