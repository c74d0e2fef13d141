"""Corruptions: each strength is more of the same, and hand values."""

import itertools
import math

import pytest
import torch

from ssl_toolkit.batch import Images
from ssl_toolkit.evaluation.corruptions import CORRUPTIONS, STRENGTHS, CorruptedView, corruptions_of
from ssl_toolkit.random import sample_keys

KEYS = sample_keys(0, 0, torch.arange(12))


def pictures(side, channels=3, num=12):
    """Smooth colours with sharp edges and fine texture, as bytes."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(num, channels, 3, 3, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=side, mode="bicubic")
    edges = torch.nn.functional.interpolate(torch.rand(num, channels, 6, 6, generator=generator), size=side)
    fine = torch.rand(num, channels, side, side, generator=generator)
    pixels = ((0.5 * smooth + 0.4 * edges + 0.1 * fine).clamp(0, 1) * 255).to(torch.uint8)
    return Images(pixels, torch.full((num, 2), side))


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("side", [32, 96])
def test_the_distance_from_the_clean_image_grows_with_the_strength(name, side):
    images = pictures(side)
    clean = images.pixels.float() / 255
    views = [CorruptedView(side, name, strength)(images, KEYS) for strength in STRENGTHS]
    distances = [float((view - clean).square().mean().sqrt()) for view in views]
    assert distances[0] > 0.003, distances
    assert all(second > 1.02 * first for first, second in itertools.pairwise(distances)), distances
    for view in views:
        assert view.shape == clean.shape
        assert 0 <= view.min() <= view.max() <= 1


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_an_image_is_corrupted_alike_in_every_batch(name):
    images = pictures(24)
    view = CorruptedView(24, name, 3)
    some = Images(images.pixels[4:7], images.sizes[4:7])
    # a product over another batch may round otherwise, a drawn number is another one
    torch.testing.assert_close(view(images, KEYS)[4:7], view(some, KEYS[4:7]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["gaussian_noise", "impulse_noise", "motion_blur", "haze"])
def test_what_is_drawn_differs_between_images(name):
    images = pictures(24)
    view, other = CorruptedView(24, name, 3)(images, KEYS), CorruptedView(24, name, 3)(images, KEYS.flip(0))
    assert not torch.allclose(view, other, atol=0.01)


def of_level(name, images, level):
    return CORRUPTIONS[name].corrupt(images, KEYS[: len(images)], level)


def test_noise_has_the_spread_it_says():
    grey = torch.full((12, 3, 64, 64), 0.36)
    assert float((of_level("gaussian_noise", grey, 0.1) - grey).std()) == pytest.approx(0.1, rel=0.02)
    assert float((of_level("shot_noise", grey, 100.0) - grey).std()) == pytest.approx(math.sqrt(0.0036), rel=0.02)
    struck = of_level("impulse_noise", grey, 0.1)
    assert float((struck != grey).float().mean()) == pytest.approx(0.1, rel=0.05)
    assert float((struck == 1).float().sum() / (struck != grey).float().sum()) == pytest.approx(0.5, abs=0.02)


def test_blurs_keep_what_is_flat_and_spread_a_point_by_as_much_as_they_say():
    flat = torch.full((2, 3, 40, 40), 0.3)
    point = torch.zeros(2, 1, 40, 40)
    point[:, :, 20, 20] = 1
    places = torch.arange(40.0) - 20
    for name in ("defocus_blur", "motion_blur"):
        torch.testing.assert_close(of_level(name, flat, 0.1), flat)
        blurred = of_level(name, point, 0.1)
        torch.testing.assert_close(blurred.sum(dim=(1, 2, 3)), torch.ones(2))
        variance = ((places[:, None] ** 2 + places**2) * blurred[:, 0]).sum(dim=(1, 2))
        # a disc of radius r has r ** 2 / 2, a line of length l has l ** 2 / 12; pixels add a little
        expected = 4.5**2 / 2 if name == "defocus_blur" else 5**2 / 12
        assert variance.tolist() == pytest.approx([expected] * 2, abs=0.6)


def test_tones_by_hand():
    images = torch.tensor([[[[0.2, 0.4]], [[0.6, 0.6]], [[0.2, 0.4]]]])
    torch.testing.assert_close(of_level("brightness", images, 0.3), images + 0.3)
    torch.testing.assert_close(of_level("contrast", images, 0.5), 0.4 + (images - 0.4) / 2)
    grey = of_level("saturation", images, 0.0)
    assert torch.equal(grey[:, 0], grey[:, 1])
    assert grey[0, 0, 0, 0] == pytest.approx(0.2 * (0.299 + 0.114) + 0.6 * 0.587, abs=1e-3)


def test_pixels_become_blocks_of_their_mean():
    images = torch.arange(16.0).view(1, 1, 4, 4) / 16
    blocks = of_level("pixelate", images, 0.5)
    assert torch.equal(blocks[0, 0, :2, :2], images[0, 0, :2, :2].mean().expand(2, 2))


def test_grey_images_and_wrong_names():
    assert "saturation" not in corruptions_of(1)
    for name in corruptions_of(1):
        assert CorruptedView(16, name, 5)(pictures(20, channels=1), KEYS).shape == (12, 1, 16, 16)
    with pytest.raises(ValueError, match="did you mean 'haze'"):
        CorruptedView(16, "hase", 1)
    with pytest.raises(ValueError, match="is 1, 2, 3, 4 or 5, got 6"):
        CorruptedView(16, "haze", 6)
