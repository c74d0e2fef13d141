"""NT-Xent against a naive loop and hand values."""

import math

import pytest
import torch

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
