"""The reconstruction of hidden patches against plain loops, its laws and hand values."""

import math

import pytest
import torch

from ssl_toolkit.losses import masked_reconstruction, normalized_patches


def make_batch(num=3, side=6, channels=2):
    generator = torch.Generator().manual_seed(0)
    predicted, images = torch.rand(2, num, channels, side, side, dtype=torch.float64, generator=generator)
    hidden = torch.zeros(num, 3, 3, dtype=torch.bool)
    for image in range(num):  # as many as the number of the image, and one
        hidden.view(num, -1)[image, : image + 1] = True
    return predicted * 3 - 1, images, hidden


def naive(predicted, images, hidden):
    """The loss, what chance loses, and the gradient, a number at a time."""
    gradient = torch.zeros_like(predicted)
    losses, chances = [], []
    for image in range(len(images)):
        num = int(hidden[image].sum())
        loss = chance = 0.0
        for row in range(3):
            for column in range(3):
                if not hidden[image, row, column]:
                    continue
                places = [(c, 2 * row + i, 2 * column + j) for c in range(2) for i in range(2) for j in range(2)]
                pixels = [images[(image, *place)].item() for place in places]
                mean = sum(pixels) / 8
                deviation = math.sqrt(sum((pixel - mean) ** 2 for pixel in pixels) / 8 + 1e-6)
                for place, pixel in zip(places, pixels, strict=True):
                    target = (pixel - mean) / deviation
                    error = predicted[(image, *place)].item() - target
                    loss += error**2 / 8 / num
                    chance += target**2 / 8 / num
                    gradient[(image, *place)] = 2 * error / 8 / num / len(images)
        losses.append(loss)
        chances.append(chance)
    return sum(losses) / len(losses), sum(chances) / len(chances), gradient


def test_loss_and_gradient_equal_plain_loops():
    predicted, images, hidden = make_batch()
    predicted.requires_grad_()
    loss, explained = masked_reconstruction(predicted, images, hidden)
    loss.backward()
    expected, chance, gradient = naive(predicted.detach(), images, hidden)
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    assert explained.item() == pytest.approx(chance - expected, rel=1e-9)
    assert not explained.requires_grad
    torch.testing.assert_close(predicted.grad, gradient, atol=1e-14, rtol=1e-9)


def test_patches_are_normalized_one_by_one():
    images = torch.rand(2, 3, 8, 12, dtype=torch.float64)
    images[0, :, :4, :4] = 0.25  # of a single colour
    patches = normalized_patches(images, 2, 3)
    assert patches.shape == (2, 2, 3, 3 * 4 * 4)
    for image in range(2):
        for row in range(2):
            for column in range(3):
                pixels = images[image, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4].flatten()
                expected = (pixels - pixels.mean()) / (pixels.var(correction=0) + 1e-6).sqrt()
                torch.testing.assert_close(patches[image, row, column], expected)
    assert not patches[0, 0, 0].any()


def test_what_is_visible_does_not_count():
    predicted, images, hidden = make_batch()
    pixels = hidden.repeat_interleave(2, 1).repeat_interleave(2, 2)[:, None]
    other_predicted = torch.where(pixels, predicted, torch.rand_like(predicted))
    other_images = torch.where(pixels, images, torch.rand_like(images))
    expected = masked_reconstruction(predicted, images, hidden)
    assert masked_reconstruction(other_predicted, other_images, hidden) == expected


def test_hand_values():
    # two patches of 1x2 pixels; the left one is hidden, with pixels that are normalised to -1 and 1
    images = torch.tensor([[[[0.2, 0.6, 0.3, 0.3]]]], dtype=torch.float64)
    hidden = torch.tensor([[[True, False]]])
    perfect = torch.tensor([[[[-1.0, 1.0, 9.0, 9.0]]]], dtype=torch.float64)
    for predicted, loss in ((perfect, 0.0), (0 * perfect, 1.0), (-perfect, 4.0)):
        found, explained = masked_reconstruction(predicted, images, hidden)
        assert found.item() == pytest.approx(loss, abs=1e-4)
        assert explained.item() == pytest.approx(1 - loss, abs=1e-4)
    # of a single colour there is nothing to predict
    found, explained = masked_reconstruction(0 * perfect, images, ~hidden)
    assert found == explained == 0


def test_brightness_and_contrast_of_a_patch_do_not_matter():
    predicted, images, hidden = make_batch()
    loss, _ = masked_reconstruction(predicted, images, hidden)
    darker, _ = masked_reconstruction(predicted, 0.5 * images + 0.1, hidden)
    assert darker.item() == pytest.approx(loss.item(), rel=1e-3)


def test_a_batch_is_the_mean_of_its_samples():
    """So that processes, and batches that are accumulated, need not ask each other how many patches are hidden."""
    predicted, images, hidden = make_batch()
    alone = [masked_reconstruction(predicted[[one]], images[[one]], hidden[[one]]) for one in range(3)]
    for number, value in enumerate(masked_reconstruction(predicted, images, hidden)):
        assert value.item() == pytest.approx(sum(each[number].item() for each in alone) / 3, rel=1e-12)


def test_half_precision_does_not_reach_it():
    predicted, images, hidden = make_batch()
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = masked_reconstruction(predicted.bfloat16(), images.float(), hidden)
    assert loss.dtype == torch.float32
    exact, _ = masked_reconstruction(predicted.bfloat16().double(), images, hidden)
    assert loss.item() == pytest.approx(exact.item(), rel=1e-5)
