"""The regression of offsets between patches, and what is lost by chance, against plain loops."""

import itertools

import pytest
import torch

from ssl_toolkit.losses import offset_moments, offset_regression


def make_batch(batch=3, pairs=7):
    generator = torch.Generator().manual_seed(0)
    predicted = torch.randn(batch, pairs, 2, dtype=torch.float64, generator=generator)
    return predicted, torch.randint(-9, 10, (batch, pairs, 2), generator=generator)


def naive(predicted, offsets, unit, least, fraction):
    """The loss and its gradient, a number at a time."""
    gradient = [[[0.0, 0.0] for _ in of_image] for of_image in predicted]
    total, num = 0.0, len(predicted) * len(predicted[0])
    for image, of_image in enumerate(predicted):
        for pair, says in enumerate(of_image):
            down, right = offsets[image][pair]
            if abs(down) >= least or abs(right) >= least:
                for axis, pixels in enumerate((down, right)):
                    error = says[axis] - pixels / unit
                    total += error**2 / 2
                    gradient[image][pair][axis] = error / num / fraction
    return total / num / fraction, gradient


@pytest.mark.parametrize("least", [0, 4, 9])
def test_loss_and_gradient_equal_plain_loops(least):
    predicted, offsets = make_batch()
    predicted.requires_grad_()
    loss = offset_regression(predicted, offsets, 4, least, 0.7)
    loss.backward()
    expected, gradient = naive(predicted.tolist(), offsets.tolist(), 4, least, 0.7)
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    torch.testing.assert_close(predicted.grad, torch.tensor(gradient, dtype=torch.float64), atol=1e-12, rtol=0)
    assert expected > 0


def test_hand_values():
    # right by one and a half units of 4 pixels; said: down by 1, right by 1; the second pair is too near
    offsets = torch.tensor([[[0, 6], [3, -3]]])
    predicted = torch.tensor([[[1.0, 1.0], [50.0, 50.0]]])
    assert offset_regression(predicted, offsets, 4, 4, 0.5).item() == pytest.approx((1 + 0.25) / 2 / 2 / 0.5)
    assert offset_regression(offsets / 4, offsets, 4, 4, 0.5).item() == 0


def test_a_batch_is_the_mean_of_its_samples():
    """So that processes, and batches that are accumulated, need not ask each other how many pairs count."""
    predicted, offsets = make_batch(4)
    alone = [offset_regression(predicted[[one]], offsets[[one]], 4, 6, 0.4).item() for one in range(4)]
    assert offset_regression(predicted, offsets, 4, 6, 0.4).item() == pytest.approx(sum(alone) / 4, rel=1e-12)


def test_half_precision_does_not_reach_it():
    predicted, offsets = make_batch()
    with torch.autocast("cpu", torch.bfloat16):
        loss = offset_regression(predicted.bfloat16(), offsets, 3, 4, 0.7)
    assert loss.dtype == torch.float32
    exact = offset_regression(predicted.bfloat16().double(), offsets, 3, 4, 0.7)
    assert loss.item() == pytest.approx(exact.item(), rel=1e-6)


@pytest.mark.parametrize(("room", "least"), [(5, 0), (5, 1), (6, 3), (7, 7)])
def test_the_moments_are_those_of_all_places(room, least):
    places = list(itertools.product(range(room + 1), repeat=2))
    pairs = [(b[0] - a[0], b[1] - a[1]) for a in places for b in places]
    counted = [(down, right) for down, right in pairs if max(abs(down), abs(right)) >= least]
    fraction, mean_square = offset_moments(room, least)
    assert fraction == pytest.approx(len(counted) / len(pairs), rel=1e-12)
    for axis in (0, 1):
        assert mean_square == pytest.approx(sum(each[axis] ** 2 for each in counted) / len(counted), rel=1e-12)
        # the best that can be said without a look is the mean, and that is 0
        assert sum(each[axis] for each in counted) == 0


def test_the_moments_of_all_pairs_are_known():
    # the difference of two uniform numbers in 0 ... n has the variance n (n + 2) / 6
    assert offset_moments(10, 0) == pytest.approx((1.0, 20.0))
