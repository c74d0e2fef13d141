"""Dense InfoNCE and the matching of places against naive loops, hand values and laws."""

import math

import pytest
import torch
import torch.nn.functional as F

from ssl_toolkit.losses import dense_info_nce, info_nce, similar_places


def random_maps(batch, places, others, width, dtype=torch.float64):
    generator = torch.Generator().manual_seed(batch + places)
    queries = torch.randn(batch, places, width, generator=generator, dtype=torch.float64)
    keys = torch.randn(batch, others, width, generator=generator, dtype=torch.float64)
    negatives = F.normalize(torch.randn(11, width, generator=generator, dtype=torch.float64), dim=1)
    return queries.to(dtype), keys.to(dtype), negatives.to(dtype)


def cosine(one, other):
    dot = sum(a * b for a, b in zip(one, other, strict=True))
    return dot / math.sqrt(sum(a * a for a in one) * sum(b * b for b in other))


def naive_partners(queries, keys):
    found = []
    for image, others in zip(queries.double().tolist(), keys.double().tolist(), strict=True):
        scores = [[cosine(place, other) for other in others] for place in image]
        found.append([row.index(max(row)) for row in scores])
    return found


def naive_dense_info_nce(queries, keys, partners, temperature, negatives):
    """Equation 2 of the paper, one exponential at a time."""
    losses, hits = [], []
    for image, query in enumerate(queries.double().tolist()):
        for place, each in enumerate(query):
            key = keys[image, partners[image][place]].double().tolist()
            right = math.exp(cosine(each, key) / temperature)
            wrong = [math.exp(cosine(each, other) / temperature) for other in negatives.double().tolist()]
            losses.append(-math.log(right / (right + sum(wrong))))
            hits.append(right > max(wrong))
    return sum(losses) / len(losses), sum(hits) / len(hits)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)], ids=str)
@pytest.mark.parametrize(("batch", "places", "others"), [(1, 1, 1), (3, 4, 4), (2, 9, 4)])
def test_equals_the_naive_loop(batch, places, others, dtype, tolerance):
    queries, keys, negatives = random_maps(batch, places, others, 6, dtype)
    partners = similar_places(queries, keys)
    assert partners.tolist() == naive_partners(queries, keys)
    found = dense_info_nce(queries, keys, partners, 0.3, negatives)
    expected = naive_dense_info_nce(queries, keys, partners.tolist(), 0.3, negatives)
    assert found[0].item() == pytest.approx(expected[0], rel=tolerance)
    assert found[1].item() == pytest.approx(expected[1])


def test_the_gradient_is_that_of_the_naive_loop():
    queries, keys, negatives = random_maps(2, 4, 4, 3)
    partners = torch.tensor([[0, 3, 1, 1], [2, 2, 0, 3]])
    leaf = queries.clone().requires_grad_()
    dense_info_nce(leaf, keys, partners, 0.3, negatives)[0].backward()
    for place in ((0, 0, 0), (0, 3, 2), (1, 2, 1)):
        moved = [queries.clone() for _ in range(2)]
        for each, step in zip(moved, (1e-5, -1e-5), strict=True):
            each[place] += step
        low, high = (naive_dense_info_nce(each, keys, partners.tolist(), 0.3, negatives)[0] for each in moved[::-1])
        assert leaf.grad[place].item() == pytest.approx((high - low) / 2e-5, rel=1e-6)


def test_places_that_were_moved_are_found_again():
    """A map whose places are the other's in another order, each of another length."""
    maps = random_maps(5, 9, 9, 16)[0]
    order = torch.stack([torch.randperm(9, generator=torch.Generator().manual_seed(each)) for each in range(5)])
    moved = maps.take_along_dim(order[:, :, None], dim=1) * torch.linspace(0.1, 3, 9, dtype=torch.float64)[:, None]
    assert torch.equal(similar_places(moved, maps), order)
    # what is found back and forth is where it was
    assert torch.equal(order.gather(1, similar_places(maps, moved)), torch.arange(9).expand(5, 9))


def test_a_place_that_shows_nothing_matches_the_first_one():
    maps = random_maps(1, 4, 4, 8)[0]
    nothing = torch.zeros_like(maps)
    assert similar_places(nothing, maps).tolist() == [[0, 0, 0, 0]]
    assert similar_places(maps, nothing).tolist() == [[0, 0, 0, 0]]


def test_maps_of_one_place_are_plain_info_nce():
    queries, keys, negatives = random_maps(6, 1, 1, 8)
    partners = similar_places(queries, keys)
    found = dense_info_nce(queries, keys, partners, 0.2, negatives)
    torch.testing.assert_close(found, info_nce(queries[:, 0], keys[:, 0], 0.2, negatives))


def test_half_precision_reaches_neither_the_matching_nor_the_similarities():
    queries, keys, negatives = random_maps(8, 9, 9, 16, torch.float32)
    # so alike that bfloat16 does not tell them apart
    keys = keys[:, :1] + 1e-3 * keys
    with torch.autocast("cpu", torch.bfloat16):
        partners = similar_places(queries, keys)
        loss = dense_info_nce(queries, keys, partners, 0.1, negatives)[0]
    assert partners.tolist() == naive_partners(queries, keys)
    expected = naive_dense_info_nce(queries, keys, partners.tolist(), 0.1, negatives)[0]
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_the_matching_has_no_gradient():
    queries, keys, _ = random_maps(2, 4, 4, 8)
    assert not similar_places(queries.requires_grad_(), keys.requires_grad_()).requires_grad
