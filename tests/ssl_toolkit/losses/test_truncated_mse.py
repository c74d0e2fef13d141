"""Truncated mean squared error: a naive loop, where its gradient goes, and padding."""

import math

import pytest
import torch

from ssl_toolkit.losses.truncated_mse import truncated_mse


def naive(logits, length, most):
    total = 0.0
    logs = logits.double().log_softmax(dim=1)
    for frame in range(1, length):
        for name in range(logits.shape[1]):
            total += min(abs(float(logs[frame, name] - logs[frame - 1, name])), most) ** 2 / logits.shape[1]
    return total / length


def test_it_is_the_naive_loop():
    torch.manual_seed(0)
    logits, lengths = 3 * torch.randn(4, 6, 5), torch.tensor([6, 4, 1, 2])
    for most in (0.5, 4.0):
        expected = [naive(row, int(length), most) for row, length in zip(logits, lengths, strict=True)]
        assert truncated_mse(logits, lengths, most).tolist() == pytest.approx(expected, rel=1e-5)
    assert truncated_mse(logits, lengths)[2] == 0


def test_padding_is_not_read():
    logits, lengths = torch.randn(2, 5, 3), torch.tensor([5, 2])
    expected = truncated_mse(logits, lengths)
    for filling in (math.nan, math.inf, 1e9):
        other = logits.clone()
        other[1, 2:] = filling
        other.requires_grad_()
        found = truncated_mse(other, lengths)
        assert torch.equal(found, expected)
        found.sum().backward()
        assert not other.grad[1, 2:].any()


def test_the_gradient_goes_to_the_later_frame_alone():
    logits = torch.randn(1, 2, 4, dtype=torch.float64, requires_grad=True)
    truncated_mse(logits, torch.tensor([2])).sum().backward()
    assert not logits.grad[0, 0].any()
    assert logits.grad[0, 1].abs().max() > 0


def test_a_change_that_is_cut_off_has_no_gradient():
    logits = torch.tensor([[[0.0, 0.0], [30.0, -30.0]]], requires_grad=True)
    loss = truncated_mse(logits, torch.tensor([2]))
    loss.sum().backward()
    # |log 1 - log 1/2| = ln 2, and 60 - ln 2, of which 4 is left
    assert float(loss.detach()) == pytest.approx((math.log(2) ** 2 + 16) / 2 / 2, rel=1e-4)
    assert logits.grad.abs().max() < 1e-6
