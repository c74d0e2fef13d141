"""NT-Xent and InfoNCE, with mixing and with a queue, against naive loops and hand values."""

import math
import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from ssl_toolkit.losses import Mixing, contrast, info_nce, nt_xent


def naive_nt_xent(first, second, temperature):
    """Equation 1 of the paper, one exponential at a time."""
    embeddings = [v / v.norm() for v in [*first.double(), *second.double()]]
    num, losses, hits = len(first), [], []
    for i, anchor in enumerate(embeddings):
        partner = (i + num) % (2 * num)
        others = {k: math.exp(float(anchor @ other) / temperature) for k, other in enumerate(embeddings) if k != i}
        losses.append(-math.log(others[partner] / sum(others.values())))
        hits.append(max(others, key=others.__getitem__) == partner)
    return sum(losses) / len(losses), sum(hits) / len(hits)


@pytest.mark.parametrize(("num", "width", "temperature"), [(2, 3, 0.5), (7, 16, 0.1), (16, 4, 1.0)])
def test_equals_the_naive_loop(num, width, temperature):
    generator = torch.Generator().manual_seed(num)
    first, second = torch.randn(2, num, width, generator=generator)
    loss, top1 = nt_xent(first, second, temperature)
    expected_loss, expected_top1 = naive_nt_xent(first, second, temperature)
    assert loss.item() == pytest.approx(expected_loss, rel=1e-5)
    assert top1.item() == pytest.approx(expected_top1)


def test_equal_embeddings_give_the_logarithm_of_the_number_of_others():
    same = torch.ones(8, 5)
    assert nt_xent(same, same, 0.5)[0].item() == pytest.approx(math.log(15))


def test_one_image_has_no_others_and_no_loss():
    loss, top1 = nt_xent(torch.randn(1, 4), torch.randn(1, 4), 0.5)
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert top1.item() == 1


def test_is_symmetric_and_ignores_lengths():
    first, second = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(0))
    loss = nt_xent(first, second, 0.2)[0]
    torch.testing.assert_close(nt_xent(second, first, 0.2)[0], loss)
    torch.testing.assert_close(nt_xent(3 * first, 0.1 * second, 0.2)[0], loss)


@pytest.mark.parametrize("rows", [1, 3, 7, 13])
def test_in_parts_it_is_the_same_with_the_same_gradients(rows, monkeypatch):
    first, second = torch.randn(2, 7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    results = []
    for most in (1 << 24, rows * 14):
        monkeypatch.setattr(contrast, "_MAX_SIMILARITIES", most)
        leaves = first.clone().requires_grad_(), second.clone().requires_grad_()
        loss, top1 = nt_xent(*leaves, 0.2)
        loss.backward()
        results.append((loss, top1, *(leaf.grad for leaf in leaves)))
    for whole, in_parts in zip(*results, strict=True):
        torch.testing.assert_close(in_parts, whole)


def test_half_precision_does_not_reach_the_similarities():
    first, second = torch.randn(2, 16, 8, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        loss = nt_xent(first, second, 0.1)[0]
    assert loss.item() == pytest.approx(naive_nt_xent(first, second, 0.1)[0], rel=1e-5)


def naive_i_mix(mixing, first, second, temperature, smoothing):
    """Each mixed view against all second ones, one exponential at a time."""
    first, second = ([v / v.norm() for v in views.double()] for views in (first, second))
    num, losses, hits = len(first), [], []
    for i, anchor in enumerate(first):
        weight, partner = float(mixing.weights[i]), int(mixing.partners[i])
        exponentials = [math.exp(float(anchor @ other) / temperature) for other in second]
        for k, exponential in enumerate(exponentials):
            target = (1 - smoothing) * (weight * (k == i) + (1 - weight) * (k == partner)) + smoothing / num
            losses.append(-target * math.log(exponential / sum(exponentials)))
        hits.append(exponentials.index(max(exponentials)) == (i if weight >= 0.5 else partner))
    return sum(losses) / num, sum(hits) / num


def i_mix(mixing, first, second, temperature, smoothing=0.0):
    return info_nce(first, second, temperature, mixing=mixing, smoothing=smoothing)


def make_mixing(num, generator):
    """Some are not mixed, and the first is its own partner."""
    weights = torch.rand(num, generator=generator).where(torch.rand(num, generator=generator) < 0.7, 1.0)
    return Mixing(torch.cat([torch.zeros(1, dtype=torch.long), torch.arange(1, num).roll(1)]), weights)


@pytest.mark.parametrize(("num", "smoothing", "temperature"), [(2, 0.0, 0.5), (7, 0.0, 0.1), (7, 0.3, 0.1)])
def test_i_mix_equals_the_naive_loop(num, smoothing, temperature):
    generator = torch.Generator().manual_seed(num)
    first, second = torch.randn(2, num, 16, generator=generator)
    mixing = make_mixing(num, generator)
    loss, top1 = i_mix(mixing, first, second, temperature, smoothing=smoothing)
    expected_loss, expected_top1 = naive_i_mix(mixing, first, second, temperature, smoothing)
    assert loss.item() == pytest.approx(expected_loss, rel=1e-5)
    assert top1.item() == pytest.approx(expected_top1)
    assert i_mix(mixing, torch.ones(num, 3), torch.ones(num, 3), 0.5)[0].item() == pytest.approx(math.log(num))


def test_smoothed_nt_xent_spreads_over_the_others():
    first, second = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))
    embeddings = [v / v.norm() for v in [*first.double(), *second.double()]]
    expected = 0.0
    for i, anchor in enumerate(embeddings):
        others = {k: math.exp(float(anchor @ other) / 0.3) for k, other in enumerate(embeddings) if k != i}
        for k, exponential in others.items():
            target = 0.8 * (k == (i + 5) % 10) + 0.2 / 9
            expected -= target * math.log(exponential / sum(others.values())) / 10
    assert nt_xent(first, second, 0.3, smoothing=0.2)[0].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("rows", [1, 3, 7])
@pytest.mark.parametrize("mixed", [False, True])
def test_in_parts_soft_targets_give_the_same(rows, mixed, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, 7, 5, dtype=torch.float64, generator=generator)
    mixing, results = make_mixing(7, generator), []
    for most in (1 << 24, rows * 7 if mixed else rows * 14):
        monkeypatch.setattr(contrast, "_MAX_SIMILARITIES", most)
        leaves = first.clone().requires_grad_(), second.clone().requires_grad_()
        arguments = {"temperature": 0.2, "smoothing": 0.1}
        loss, top1 = i_mix(mixing, *leaves, **arguments) if mixed else nt_xent(*leaves, **arguments)
        loss.backward()
        results.append((loss, top1, *(leaf.grad for leaf in leaves)))
    for whole, in_parts in zip(*results, strict=True):
        torch.testing.assert_close(in_parts, whole)


@pytest.mark.parametrize(("num", "negatives", "temperature"), [(1, 1, 0.5), (7, 20, 0.1), (16, 5, 1.0)])
def test_a_query_picks_its_key_among_negatives(num, negatives, temperature):
    generator = torch.Generator().manual_seed(num)
    queries, keys = torch.randn(2, num, 8, generator=generator)
    queue = F.normalize(torch.randn(negatives, 8, generator=generator), dim=1)
    loss, top1 = info_nce(queries, keys, temperature, queue)
    total, hits = 0.0, 0
    for query, key in zip(queries.double(), keys.double(), strict=True):
        query, key = query / query.norm(), key / key.norm()
        right = math.exp(float(query @ key) / temperature)
        wrong = [math.exp(float(query @ each) / temperature) for each in queue.double()]
        total -= math.log(right / (right + sum(wrong)))
        hits += right > max(wrong)
    assert loss.item() == pytest.approx(total / num, rel=1e-5)
    assert top1.item() == pytest.approx(hits / num)


def test_with_negatives_nothing_depends_on_the_other_queries():
    generator = torch.Generator().manual_seed(0)
    queries, keys = torch.randn(2, 6, 8, generator=generator)
    queue = F.normalize(torch.randn(9, 8, generator=generator), dim=1)
    whole = info_nce(queries, keys, 0.2, queue, smoothing=0.1)[0]
    alone = [info_nce(q[None], k[None], 0.2, queue, smoothing=0.1)[0] for q, k in zip(queries, keys, strict=True)]
    torch.testing.assert_close(whole, torch.stack(alone).mean())


@pytest.mark.slow
def test_a_large_batch_needs_little_memory():
    program = """
import torch
from peak_memory import forget_peak_memory, peak_memory
from ssl_toolkit.losses import nt_xent
first, second = (torch.randn(8192, 64).requires_grad_() for _ in range(2))
nt_xent(first[:64], second[:64], 0.2)[0].backward()
before = forget_peak_memory()
nt_xent(first, second, 0.2)[0].backward()
print(peak_memory() - before)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    said = subprocess.run(
        [sys.executable, "-c", program], check=True, env=environment, capture_output=True, text=True, timeout=250
    )
    # the matrix of 16,384 x 16,384 float32 would be 1 GiB
    assert int(said.stdout) < 0.5 * 2**20
