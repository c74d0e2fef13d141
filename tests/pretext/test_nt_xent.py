"""NT-Xent against a naive loop and hand values."""

import math
import subprocess
import sys

import pytest
import torch

from pretext import simclr
from pretext.simclr import nt_xent


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
        monkeypatch.setattr(simclr, "_MAX_SIMILARITIES", most)
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


@pytest.mark.slow
def test_a_large_batch_needs_little_memory():
    program = """
import resource, torch
from pretext.simclr import nt_xent
first, second = (torch.randn(8192, 64).requires_grad_() for _ in range(2))
nt_xent(first[:64], second[:64], 0.2)[0].backward()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
nt_xent(first, second, 0.2)[0].backward()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    said = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=250)
    # the matrix of 16,384 x 16,384 float32 would be 1 GiB
    assert int(said.stdout) < 0.5 * 2**20
