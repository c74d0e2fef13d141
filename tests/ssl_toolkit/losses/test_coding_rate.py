"""The total coding rate and the loss of EMP-SSL against a naive loop, hand values and laws; processes against one."""

import math

import pytest
import torch
import torch.nn.functional as F

from ssl_toolkit.distributed.ranks import rank
from ssl_toolkit.losses import coding_rate, emp_ssl, most_coding_rate


def crops(num, batch, width, dtype=torch.float64):
    """Embeddings of crops that agree in part."""
    generator = torch.Generator().manual_seed(num + batch)
    image = torch.randn(1, batch, width, generator=generator, dtype=torch.float64)
    return (image + torch.randn(num, batch, width, generator=generator, dtype=torch.float64)).to(dtype)


def log_determinant(matrix):
    """Of a list of lists, by Gaussian elimination."""
    total, rows = 0.0, [list(row) for row in matrix]
    for i, pivot in enumerate(rows):
        total += math.log(pivot[i])
        for row in rows[i + 1 :]:
            factor = row[i] / pivot[i]
            row[:] = [a - factor * b for a, b in zip(row, pivot, strict=True)]
    return total


def unit_vector(row):
    length = math.sqrt(sum(float(x) ** 2 for x in row))
    return [float(x) / length for x in row]


def naive_emp_ssl(embeddings, invariance, distortion):
    """Equations 1 to 3 of the paper, one product at a time; the constant that makes 0 the best is added."""
    unit = [[unit_vector(row) for row in crop] for crop in embeddings.double().tolist()]
    num, batch, width = embeddings.shape
    most, rates, cosines = 0.5 * width * math.log(1 + 1 / distortion), [], []
    for crop in unit:
        scale = width / (batch * distortion)
        gram = [[(i == j) + scale * sum(z[i] * z[j] for z in crop) for j in range(width)] for i in range(width)]
        rates.append(0.5 * log_determinant(gram))
        for sample, z in enumerate(crop):
            mean = unit_vector([sum(each[sample][i] for each in unit) / num for i in range(width)])
            cosines.append(sum(a * b for a, b in zip(z, mean, strict=True)))
    rate, cosine = sum(rates) / num, sum(cosines) / len(cosines)
    return most - rate + invariance * (1 - cosine), rate / most, cosine


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5), (torch.bfloat16, 1e-5)], ids=str
)
@pytest.mark.parametrize(("num", "batch", "width"), [(1, 2, 3), (4, 7, 5), (3, 4, 9)])
def test_equals_the_naive_loop(num, batch, width, dtype, tolerance):
    embeddings = crops(num, batch, width, dtype)
    found = emp_ssl(embeddings, 3.0, 0.3)
    assert found[0].dtype == torch.promote_types(dtype, torch.float32)
    assert [each.item() for each in found] == pytest.approx(naive_emp_ssl(embeddings, 3.0, 0.3), rel=tolerance)


def test_the_gradient_is_that_of_the_naive_loop():
    embeddings = crops(3, 4, 3).requires_grad_()
    emp_ssl(embeddings, 3.0, 0.3)[0].backward()
    for place in ((0, 0, 0), (1, 2, 1), (2, 3, 2)):
        moved = [embeddings.detach().clone() for _ in range(2)]
        for each, step in zip(moved, (1e-5, -1e-5), strict=True):
            each[place] += step
        slope = (naive_emp_ssl(moved[0], 3.0, 0.3)[0] - naive_emp_ssl(moved[1], 3.0, 0.3)[0]) / 2e-5
        assert embeddings.grad[place].item() == pytest.approx(slope, rel=1e-6)


def test_half_precision_reaches_neither_products_nor_determinants():
    embeddings = crops(4, 16, 8, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        loss = emp_ssl(embeddings)[0]
    assert loss.item() == pytest.approx(naive_emp_ssl(embeddings, 200.0, 0.2)[0], rel=1e-5)


def test_hand_values():
    axes = torch.eye(4, dtype=torch.float64)
    # four images at right angles whose crops are equal: the best there is
    loss, rate, agreement = emp_ssl(axes.expand(3, 4, 4))
    assert (loss.item(), rate.item(), agreement.item()) == pytest.approx((0, 1, 1))
    assert coding_rate(axes[None], 0.2).item() == pytest.approx(2 * math.log(6))
    # a collapse: one eigenvalue of 1 + 4 / 0.2
    assert coding_rate(axes[:1].expand(1, 5, 4), 0.2).item() == pytest.approx(0.5 * math.log(21))
    # two crops at right angles: cosines of 1 / sqrt(2) with their mean
    loss, _, agreement = emp_ssl(torch.stack([axes, axes.roll(1, dims=0)]), invariance=10.0)
    assert (loss.item(), agreement.item()) == pytest.approx((10 * (1 - 0.5**0.5), 0.5**0.5))


def test_lengths_rotations_and_orders_do_not_matter():
    embeddings = crops(3, 6, 5)
    generator = torch.Generator().manual_seed(0)
    loss = emp_ssl(embeddings)[0]
    rotation = torch.linalg.qr(torch.randn(5, 5, generator=generator, dtype=torch.float64))[0]
    lengths = torch.rand(3, 6, 1, generator=generator, dtype=torch.float64) + 0.5
    same = (embeddings @ rotation, embeddings * lengths, embeddings.flip(0), embeddings.flip(1))
    for each in same:
        torch.testing.assert_close(emp_ssl(each)[0], loss, rtol=1e-9, atol=0)
    # but which crops belong to which image matters
    assert emp_ssl(torch.cat([embeddings[:1], embeddings[1:].flip(1)]))[0] > 1.1 * loss


@pytest.mark.parametrize(("batch", "width"), [(3, 8), (8, 8), (20, 8)])
def test_no_embeddings_have_more_than_the_most_coding_rate(batch, width):
    most = most_coding_rate(width, 0.2, batch)
    # at right angles, and where there are more of them than directions, two of each
    best = torch.eye(width, dtype=torch.float64).repeat(2, 1)[: batch if batch <= width else 2 * width]
    assert coding_rate(best[None], 0.2).item() == pytest.approx(most, rel=1e-9)
    at_random = F.normalize(torch.randn(50, batch, width, generator=torch.Generator().manual_seed(0)), dim=2)
    assert coding_rate(at_random, 0.2).max() < most


SIZES = [3, 5, 2]


def gradients_of_a_part(embeddings):
    leaf = embeddings.split(SIZES, dim=1)[rank()].clone().requires_grad_()
    coding_rate(F.normalize(leaf, dim=2)).sum().backward()
    return coding_rate(F.normalize(leaf, dim=2)).tolist(), leaf.grad


@pytest.mark.slow
def test_three_processes_with_unequal_parts_have_the_coding_rate_of_one(run_processes):
    embeddings = crops(2, sum(SIZES), 6).requires_grad_()
    rates = coding_rate(F.normalize(embeddings, dim=2))
    rates.sum().backward()
    parts = run_processes(gradients_of_a_part, 3, embeddings.detach())
    for found, _ in parts:
        assert found == pytest.approx(rates.tolist(), rel=1e-12)
    # every process computes the whole, so each gradient is three times that of one; DDP averages over the three
    together = torch.cat([gradient for _, gradient in parts], dim=1) / 3
    torch.testing.assert_close(together, embeddings.grad, rtol=1e-9, atol=1e-12)
