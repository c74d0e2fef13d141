"""Retrieval against a naive loop over sorted lists, chance against all orders."""

import itertools

import numpy as np
import pytest
import torch

from ssl_toolkit.evaluation import retrieval
from ssl_toolkit.evaluation.retrieval import chance_of_a_hit, chance_precision, retrieve


def naive(features, labels, ks):
    """By Python's sort: hits by k, and average precision, of each image whose class has another."""
    x = features.double().numpy()
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    hits, precisions, queries = {k: [] for k in ks}, [], []
    for query, label in enumerate(labels.tolist()):
        others = [place for place in range(len(x)) if place != query]
        right = [labels[place].item() == label for place in sorted(others, key=lambda place: -x[query] @ x[place])]
        if not any(right):
            continue
        queries.append(query)
        for k in ks:
            hits[k].append(any(right[:k]))
        at = [rank for rank, each in enumerate(right, 1) if each]
        precisions.append(sum(number / rank for number, rank in enumerate(at, 1)) / len(at))
    return queries, hits, precisions


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_as_a_naive_loop_finds_it(dtype, monkeypatch):
    monkeypatch.setattr(retrieval, "_MAX_SIMILARITIES", 100)  # two queries at a time
    torch.manual_seed(0)
    features = (torch.randn(43, 6) + 1).to(dtype)
    labels = torch.cat([torch.randint(0, 5, (41,)), torch.tensor([5, 6])])
    counted = []
    found = retrieve(features, labels, (1, 5, 10), count=counted.append)
    queries, hits, precisions = naive(features, labels, (1, 5, 10))
    assert found.queries.tolist() == queries
    assert found.num_single == 2
    assert {k: values.tolist() for k, values in found.hits.items()} == hits
    torch.testing.assert_close(found.precision, torch.tensor(precisions, dtype=torch.float64))
    assert sum(counted) == 41


@pytest.mark.parametrize(("num", "num_right"), [(1, 1), (4, 1), (5, 2), (6, 4), (6, 6)])
def test_chance_is_the_mean_over_all_orders(num, num_right):
    precisions, hits = [], {k: [] for k in range(1, num + 1)}
    for places in itertools.combinations(range(1, num + 1), num_right):
        precisions.append(sum(number / rank for number, rank in enumerate(places, 1)) / num_right)
        for k, values in hits.items():
            values.append(places[0] <= k)
    assert chance_precision(num, num_right) == pytest.approx(np.mean(precisions))
    for k, values in hits.items():
        assert chance_of_a_hit(num, num_right, k) == pytest.approx(np.mean(values))


def test_chance_is_what_random_features_find():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 5
    runs = [retrieve(torch.randn(60, 30, generator=generator), labels) for _ in range(40)]
    precision = torch.stack([run.precision.mean() for run in runs])
    assert abs(precision.mean() - runs[0].chance_precision) < 4 * precision.std() / 40**0.5
    assert runs[0].chance_precision > 11 / 59 + 0.03, "the share of the class is not what chance reaches"
    for k, chance in runs[0].chance_hits.items():
        assert torch.stack([run.hits[k].double().mean() for run in runs]).mean() == pytest.approx(chance, abs=0.03)


def test_equal_features_find_what_chance_does_whatever_the_order_of_the_files():
    labels = torch.arange(10).repeat_interleave(40)
    found = retrieve(torch.ones(400, 3), labels)
    assert float(found.precision.mean()) == pytest.approx(found.chance_precision, abs=0.01)
    zeros = retrieve(torch.zeros(400, 3), labels, seed=1)
    assert not torch.equal(zeros.precision, found.precision), "another seed is another order"


def test_classes_that_lie_apart_are_found():
    labels = torch.arange(4).repeat_interleave(5)
    found = retrieve(torch.eye(4)[labels], labels, (1, 100))
    assert list(found.hits) == [1, 19], "no more neighbours than there are other images"
    assert found.precision.tolist() == [1.0] * 20


def test_what_cannot_be_ranked_is_refused():
    with pytest.raises(ValueError, match="needs a class with two test images"):
        retrieve(torch.ones(3, 2), torch.arange(3))
    with pytest.raises(ValueError, match="a label for each image"):
        retrieve(torch.ones(3, 2), torch.tensor([0, 0, -1]))
    with pytest.raises(ValueError, match="at least 1, got"):
        retrieve(torch.ones(3, 2), torch.zeros(3, dtype=torch.int64), (0,))
    with pytest.raises(ValueError, match="not finite"):
        retrieve(torch.full((3, 2), torch.nan), torch.zeros(3, dtype=torch.int64))
