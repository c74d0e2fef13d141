"""kNN against a naive loop, against scikit-learn, and at the edges of tiny data."""

import math

import pytest
import torch

from ssl_toolkit.evaluation import knn as module
from ssl_toolkit.evaluation import knn_accuracy, knn_predict
from ssl_toolkit.evaluation.knn import _largest
from ssl_toolkit.perf.matmul import onednn_matmul


def clusters(num, num_classes=4, width=8, noise=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(num_classes, width, generator=torch.Generator().manual_seed(99))
    labels = torch.randint(num_classes, (num,), generator=generator)
    return centres[labels] + noise * torch.randn(num, width, generator=generator), labels


def naive_prediction(train, labels, query, k, temperature):
    def cosine(a, b):
        return float(a @ b) / math.sqrt(float(a @ a) * float(b @ b))

    nearest = sorted(range(len(train)), key=lambda i: -cosine(train[i], query))[:k]
    votes = [0.0] * (int(labels.max()) + 1)
    for i in nearest:
        votes[int(labels[i])] += math.exp(cosine(train[i], query) / temperature)
    return votes.index(max(votes))


@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_equals_a_naive_loop_for_every_k(temperature):
    train, labels = clusters(60)
    query, _ = clusters(40, seed=1)
    predictions = knn_predict(train, labels, query, (1, 5, 20), temperature)
    assert list(predictions) == [1, 5, 20]
    for k, predicted in predictions.items():
        assert predicted.tolist() == [naive_prediction(train, labels, one, k, temperature) for one in query]


def test_at_a_high_temperature_it_is_scikit_learns_unweighted_vote():
    neighbors = pytest.importorskip("sklearn.neighbors")
    train, labels = clusters(300, noise=0.8)
    query, query_labels = clusters(200, noise=0.8, seed=1)
    for k in (1, 7):
        reference = neighbors.KNeighborsClassifier(k, metric="cosine", algorithm="brute").fit(
            train.numpy(), labels.numpy()
        )
        expected = reference.score(query.numpy(), query_labels.numpy())
        # equal votes of two classes may go either way
        assert knn_accuracy(train, labels, query, query_labels, (k,), 1e4)[k] == pytest.approx(expected, abs=0.03)


def test_chunks_of_queries_change_nothing(monkeypatch):
    train, labels = clusters(50)
    query, _ = clusters(33, seed=1)
    whole = knn_predict(train, labels, query, (3, 50))
    monkeypatch.setattr(module, "_MAX_SIMILARITIES", 101)
    chunked = knn_predict(train, labels, query, (3, 50))
    assert all(torch.equal(whole[k], chunked[k]) for k in whole)


def test_k_is_clipped_to_the_bank_and_counted_once():
    train = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
    accuracy = knn_accuracy(train, torch.tensor([0, 0, 1]), train, torch.tensor([0, 0, 1]), (1, 5, 20, 200))
    assert accuracy == {1: 1.0, 3: 1.0}


def test_two_classes_and_three_images_of_huge_and_tiny_norm():
    train = torch.tensor([[1e8, 0.0], [0.0, 1e-4], [1e-4, 0.0]])
    predictions = knn_predict(train, torch.tensor([0, 1, 0]), torch.tensor([[3.0, 0.1], [0.1, 3.0]]), (1, 2), 0.001)
    assert {k: predicted.tolist() for k, predicted in predictions.items()} == {1: [0, 1], 2: [0, 1]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"train": torch.zeros(0, 2), "train_labels": torch.zeros(0, dtype=torch.int64)},
            "at least one training image",
        ),
        ({"train_labels": torch.tensor([0, -1, 1])}, "1 of 3 have none"),
        ({"k": (0, 5)}, "at least 1, got \\(0, 5\\)"),
        ({"temperature": 0.0}, "above 0, got 0.0"),
    ],
)
def test_errors_name_what_was_given(change, message):
    arguments = {"train": torch.ones(3, 2), "train_labels": torch.tensor([0, 1, 1]), "query": torch.ones(1, 2)}
    with pytest.raises(ValueError, match=message):
        knn_predict(**{**arguments, **change})


@pytest.mark.parametrize("columns", [40, 700, 1283])
def test_the_largest_by_way_of_groups_are_the_largest(columns):
    values = torch.rand(9, columns, generator=torch.Generator().manual_seed(0))
    largest, places = _largest(values, 10)
    expected = values.topk(10, dim=1)
    assert torch.equal(largest, expected.values)
    assert torch.equal(places, expected.indices)


def test_products_are_left_as_they_were_set():
    settings = torch.backends.mkldnn.matmul  # pyright: ignore[reportAttributeAccessIssue]
    before = settings.fp32_precision
    with onednn_matmul(may_round=True):
        assert settings.fp32_precision == "bf16"
    assert settings.fp32_precision == before
    a, b = torch.rand(300, 200), torch.rand(200, 400)
    with onednn_matmul():
        torch.testing.assert_close((a @ b).double(), a.double() @ b.double(), rtol=1e-5, atol=0)


def test_rounded_factors_change_next_to_nothing_on_features_with_a_common_mean(monkeypatch):
    """What a processor with AMX does, by hand: the factors are bfloat16, the sums are not."""
    common = 300 * torch.randn(64, generator=torch.Generator().manual_seed(5))
    (train, labels), (query, _) = clusters(2000, width=64, noise=3.0), clusters(500, width=64, noise=3.0, seed=1)
    train, query = common + train, common + query
    exact = knn_predict(train, labels, query, (1, 20))
    originals = {name: getattr(torch, name) for name in ("mm", "addmm")}

    def rounded(name):
        def product(*factors, out):
            *bias, first, second = factors
            return originals[name](*bias, first.bfloat16().float(), second.bfloat16().float(), out=out)

        return product

    for name in originals:
        monkeypatch.setattr(torch, name, rounded(name))
    found = knn_predict(train, labels, query, (1, 20))
    for k, predicted in found.items():
        assert (predicted != exact[k]).float().mean() < 0.02
