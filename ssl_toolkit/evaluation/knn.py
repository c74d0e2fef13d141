"""Weighted nearest-neighbour classification on frozen features."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

# similarities held at a time: 2^24 float32 are 64 MiB
_MAX_SIMILARITIES = 1 << 24


def knn_predict(
    train: Tensor,
    train_labels: Tensor,
    query: Tensor,
    k: Sequence[int] = (1, 5, 20, 200),
    temperature: float = 0.07,
) -> dict[int, Tensor]:
    """Classifies each query by a weighted vote of its nearest training images.

    The ``k`` training images of the largest cosine similarity ``s`` vote for their class, each with weight
    ``exp(s / temperature)``: Wu et al. 2018, "Unsupervised Feature Learning via Non-Parametric Instance
    Discrimination", arXiv 1805.01978, section 3.4. All values of ``k`` come from one search.

    Args:
        train: float tensor of shape ``[num_train, d]``: the bank; need not be normalised.
        train_labels: int64 tensor of shape ``[num_train]``: classes from 0.
        query: float tensor of shape ``[num_query, d]``.
        k: Numbers of neighbours, each at least 1. One above ``num_train`` means all of the bank.
        temperature: Above 0; the smaller, the more the nearest neighbours count.

    Returns:
        int64 tensor of shape ``[num_query]`` of predicted classes, for each distinct clipped ``k``, in ascending order.

    Raises:
        ValueError: If there are no training images, one has no label, or a ``k`` or the temperature is out of range.
    """
    if not len(train) or len(train) != len(train_labels):
        raise ValueError(
            f"kNN needs a label for each of at least one training image, got {len(train)} images and "
            f"{len(train_labels)} labels"
        )
    if int(train_labels.min()) < 0:
        unlabelled = int((train_labels < 0).sum())
        raise ValueError(f"kNN needs labelled training images, but {unlabelled} of {len(train)} have none")
    if not k or min(k) < 1:
        raise ValueError(f"kNN needs numbers of neighbours of at least 1, got {tuple(k)}")
    if temperature <= 0:
        raise ValueError(f"the temperature of kNN must be above 0, got {temperature}")
    ks = sorted({min(number, len(train)) for number in k})
    num_classes = int(train_labels.max()) + 1
    bank = F.normalize(train.float(), dim=1).T
    predictions: dict[int, list[Tensor]] = {number: [] for number in ks}
    for chunk in F.normalize(query.float(), dim=1).split(max(1, _MAX_SIMILARITIES // len(train))):
        similarity, neighbours = (chunk @ bank).topk(ks[-1], dim=1)
        # one less in the exponent changes no vote's share and keeps the weights within 1
        weights = ((similarity - 1.0) / temperature).exp()
        classes = train_labels[neighbours]
        for number in ks:
            votes = weights.new_zeros(len(chunk), num_classes)
            votes.scatter_add_(1, classes[:, :number], weights[:, :number])
            predictions[number].append(votes.argmax(dim=1))
    return {number: torch.cat(parts) for number, parts in predictions.items()}


def knn_accuracy(
    train: Tensor,
    train_labels: Tensor,
    query: Tensor,
    query_labels: Tensor,
    k: Sequence[int] = (1, 5, 20, 200),
    temperature: float = 0.07,
) -> dict[int, float]:
    """The share of queries that `knn_predict` classifies rightly, for each distinct clipped ``k``.

    Args:
        train: float tensor of shape ``[num_train, d]``.
        train_labels: int64 tensor of shape ``[num_train]``.
        query: float tensor of shape ``[num_query, d]``.
        query_labels: int64 tensor of shape ``[num_query]``.
        k: Numbers of neighbours.
        temperature: Of the votes.

    Returns:
        Accuracies in ``[0, 1]`` by ``k``.

    Raises:
        ValueError: As `knn_predict`.
    """
    predictions = knn_predict(train, train_labels, query, k, temperature)
    return {number: float((predicted == query_labels).double().mean()) for number, predicted in predictions.items()}
