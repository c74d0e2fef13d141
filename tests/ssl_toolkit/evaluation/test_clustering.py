"""K-means, NMI and ARI against scikit-learn."""

import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from ssl_toolkit.evaluation.clustering import (
    adjusted_rand_index,
    chance_information,
    k_means,
    normalized_mutual_information,
)


def blobs(num, num_classes, width, apart, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, num_classes, (num,), generator=generator)
    centres = apart * torch.randn(num_classes, width, generator=generator)
    return centres[labels] + torch.randn(num, width, generator=generator) + 50, labels


@pytest.mark.parametrize("seed", range(3))
def test_partitions_are_compared_as_scikit_learn_does(seed):
    generator = torch.Generator().manual_seed(seed)
    first, second = (torch.randint(0, number, (60,), generator=generator) for number in (4, 7))
    second = torch.where(torch.rand(60, generator=generator) < 0.5, first, second)
    assert normalized_mutual_information(first, second) == pytest.approx(normalized_mutual_info_score(first, second))
    assert adjusted_rand_index(first, second) == pytest.approx(adjusted_rand_score(first, second))


def test_the_ends_of_the_scales():
    labels, one, each = torch.tensor([0, 0, 1, 1, 2, 2]), torch.zeros(6, dtype=torch.int64), torch.arange(6)
    assert normalized_mutual_information(labels, 2 - labels) == pytest.approx(1)
    assert adjusted_rand_index(labels, 2 - labels) == 1
    assert (normalized_mutual_information(one, one), adjusted_rand_index(one, one)) == (1, 1)
    assert adjusted_rand_index(each, each) == 1
    assert normalized_mutual_information(labels, one) == pytest.approx(0)
    assert adjusted_rand_index(labels, one) == 0
    with pytest.raises(ValueError, match="of the same images"):
        adjusted_rand_index(labels, one[:3])


def test_random_clusters_of_few_images_seem_to_tell_much():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 20
    random = [labels[torch.randperm(60, generator=generator)] for _ in range(50)]
    mean = sum(normalized_mutual_information(each, labels) for each in random) / 50
    assert chance_information(labels, labels, seed=3) == pytest.approx(mean, abs=0.02)
    assert mean > 0.5


@pytest.mark.parametrize("apart", [0.3, 1.0, 3.0])
def test_inertia_is_that_of_scikit_learn(apart):
    features, labels = blobs(200, 5, 8, apart)
    found = k_means(features, 5, restarts=20)
    peer = KMeans(5, n_init=20, random_state=0).fit(features.numpy())
    assert found.inertia == pytest.approx(peer.inertia_, rel=0.01)
    distances = torch.cdist(features, found.centres)
    assert torch.equal(found.assigned, distances.argmin(dim=1))
    assert found.inertia == pytest.approx(float(distances.min(dim=1).values.square().sum()), rel=1e-4)
    if apart == 3.0:
        assert adjusted_rand_index(found.assigned, labels) == 1


def test_the_seed_alone_decides_and_the_global_generator_is_left_alone():
    features, _ = blobs(100, 8, 4, 0.1)
    state = torch.get_rng_state()
    first, again, other = (k_means(features, 8, restarts=1, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.assigned, again.assigned)
    assert not torch.equal(first.assigned, other.assigned)
    assert torch.equal(torch.get_rng_state(), state)
    assert k_means(features, 8, restarts=10, seed=1).inertia <= first.inertia


def test_fewer_different_images_than_clusters():
    found = k_means(torch.tensor([[1.0], [1.0], [2.0], [2.0], [2.0]]), 4)
    assert found.inertia == 0
    assert found.assigned.unique().numel() == 2
    assert k_means(torch.ones(4, 3), 3).inertia == 0


def test_as_many_clusters_as_images():
    found = k_means(torch.arange(6.0)[:, None], 6)
    assert found.inertia == 0
    assert found.assigned.unique().numel() == 6


def test_what_cannot_be_clustered_is_refused():
    with pytest.raises(ValueError, match="from 1 to 3 clusters for as many images, got 4"):
        k_means(torch.ones(3, 1), 4)
    with pytest.raises(ValueError, match="not finite"):
        k_means(torch.full((3, 1), torch.inf), 2)
    with pytest.raises(ValueError, match="a start and an iteration"):
        k_means(torch.ones(3, 1), 2, restarts=0)
