"""Whitening against its definition, and the symmetric cosine against a loop."""

import pytest
import torch

from ssl_toolkit.losses import negative_cosine, symmetric_cosine, whiten


def test_what_is_whitened_has_the_identity_as_covariance():
    mixing = torch.tensor([[2.0, 0, 0], [1, 0.1, 0], [0, 3, 1]], dtype=torch.float64)
    x = torch.randn(50, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) @ mixing + 7
    whitened = whiten(x)
    torch.testing.assert_close(whitened.mean(dim=0), torch.zeros(3, dtype=torch.float64), atol=1e-12, rtol=0)
    torch.testing.assert_close(torch.cov(whitened.T), torch.eye(3, dtype=torch.float64))


def test_it_is_the_inverse_of_the_cholesky_factor_by_gram_schmidt():
    """Column by column: what is left of each after the ones before it, at length 1 a degree of freedom."""
    x = torch.randn(9, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    centred, columns = x - x.mean(dim=0), []
    for column in centred.T:
        for before in columns:
            column = column - (column @ before) / (before @ before) * before
        columns.append(column * (8**0.5 / column.norm()))
    torch.testing.assert_close(whiten(x), torch.stack(columns, dim=1))


def test_shrinking_makes_any_batch_invertible():
    x = torch.randn(3, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert not whiten(x).isfinite().all()
    whitened = whiten(x, eps=0.1)
    assert whitened.isfinite().all()
    centred = x - x.mean(dim=0)
    covariance = 0.9 * centred.T @ centred / 2 + 0.1 * torch.eye(8, dtype=torch.float64)
    torch.testing.assert_close(whitened @ torch.linalg.cholesky(covariance).T, centred)


@pytest.mark.parametrize("num", [5, 40, 100])
def test_large_embeddings_in_few_dimensions_stay_finite(num):
    """In float32 the factor of their covariance is lost."""
    embeddings = 300 * torch.randn(num, 64, generator=torch.Generator().manual_seed(0))
    leaf = embeddings.requires_grad_()
    whitened = whiten(leaf, 1e-4)
    assert whitened.dtype == torch.float32
    assert whitened.isfinite().all()
    torch.testing.assert_close(whitened.double(), whiten(embeddings.detach().double(), 1e-4), rtol=1e-4, atol=1e-4)
    whitened.square().sum().backward()
    assert leaf.grad.isfinite().all()


def test_its_gradient_is_that_of_differences():
    x = torch.randn(6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    assert torch.autograd.gradcheck(lambda each: whiten(each, 0.01), x)


def test_the_symmetric_cosine_has_a_gradient_on_both_sides():
    views = torch.randn(2, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    first, second = views.clone().requires_grad_().unbind()
    first.retain_grad()
    second.retain_grad()
    loss = symmetric_cosine(first, second)
    expected = sum(((a / a.norm() - b / b.norm()) ** 2).sum() for a, b in zip(*views, strict=True)) / 4
    assert loss.item() == pytest.approx(expected.item())
    assert loss.item() == pytest.approx(negative_cosine(*views).item())
    loss.backward()
    assert min(first.grad.norm(), second.grad.norm()) > 0
    torch.testing.assert_close((first.grad * first).sum(dim=1), torch.zeros(4, dtype=torch.float64), atol=1e-12, rtol=0)


def test_neither_a_shift_nor_the_scale_of_a_dimension_matters():
    x = torch.randn(9, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    moved = x * torch.tensor([0.01, 1.0, 50.0], dtype=torch.float64) + torch.tensor([5.0, -7.0, 0.0])
    torch.testing.assert_close(whiten(moved), whiten(x))
