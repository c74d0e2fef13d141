"""Colour operations against torchvision's functional result, image by image."""

import math

import pytest
import torch
from torchvision.transforms.v2 import functional as tv

from ssl_toolkit.augment import (
    Jitter,
    brightness,
    colour_jitter,
    contrast,
    draw_jitter,
    grayscale,
    hue,
    saturation,
    solarize,
)
from ssl_toolkit.random import sample_keys

BATCH = 40
KEYS = sample_keys(0, 0, torch.arange(4000))
TORCHVISION = [tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue]


@pytest.fixture
def images() -> torch.Tensor:
    """Noise, an image of each corner of the colour cube, greys (one exactly at a threshold), and near-greys."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(BATCH, 3, 9, 11, generator=generator)
    corners = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 3)
    images[:8] = corners[:, :, None, None]
    images[8] = 0.5
    images[9] = images[9, :1]
    images[10] = images[10, :1] + 1e-4 * images[10]
    images[12] = 0.4
    return images


@pytest.fixture
def factors() -> torch.Tensor:
    factors = torch.rand(BATCH, generator=torch.Generator().manual_seed(1)) * 2.5
    factors[-2:] = torch.tensor([0.0, 1.0])
    return factors


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [(brightness, tv.adjust_brightness), (contrast, tv.adjust_contrast), (saturation, tv.adjust_saturation)],
)
def test_blends_equal_torchvision(images, factors, ours, theirs):
    result = ours(images, factors)
    for i in range(BATCH):
        torch.testing.assert_close(result[i], theirs(images[i], factors[i].item()), atol=1e-6, rtol=0)


def test_hue_equals_torchvision(images):
    shifts = torch.rand(BATCH, generator=torch.Generator().manual_seed(1)) - 0.5
    shifts[-3:] = torch.tensor([-0.5, 0.0, 0.5])
    result = hue(images, shifts)
    for i in range(BATCH):
        # both are exact formulas; float32 rounds the hue of nearly grey pixels, whose colour hardly shows
        torch.testing.assert_close(result[i], tv.adjust_hue(images[i], shifts[i].item()), atol=5e-6, rtol=0)


def test_hue_of_smallest_differences_is_finite():
    images = torch.zeros(1, 3, 1, 2)
    images[0, 0, 0] = torch.tensor([1e-40, 1e-25])
    assert hue(images, torch.full((1,), 0.3)).isfinite().all()


def test_grayscale_and_solarize_change_the_chosen_images_as_torchvision_does(images):
    apply = torch.arange(BATCH) % 2 == 0
    gray, solarized = grayscale(images, apply), solarize(images, apply, 0.4)
    for i in range(BATCH):
        expected = tv.rgb_to_grayscale(images[i], 3) if apply[i] else images[i]
        torch.testing.assert_close(gray[i], expected, atol=1e-6, rtol=0)
        assert torch.equal(solarized[i], tv.solarize(images[i], 0.4) if apply[i] else images[i])


@pytest.mark.parametrize("channels", [1, 4])
def test_brightness_and_contrast_take_any_number_of_channels(channels, factors):
    images = torch.rand(BATCH, channels, 6, 6)
    result = contrast(brightness(images, factors), factors)
    for i in range(BATCH):
        dimmed = (images[i] * factors[i]).clamp(0, 1)
        expected = (factors[i] * dimmed + (1 - factors[i]) * dimmed.mean()).clamp(0, 1)
        torch.testing.assert_close(result[i], expected, atol=1e-6, rtol=0)
        if channels == 1:
            theirs = tv.adjust_contrast(tv.adjust_brightness(images[i], factors[i].item()), factors[i].item())
            torch.testing.assert_close(result[i], theirs, atol=1e-6, rtol=0)


@pytest.mark.parametrize("channels", [1, 4])
def test_colour_operations_on_images_without_three_channels_are_named(channels):
    images, ones = torch.rand(2, channels, 4, 4), torch.ones(2)
    order = torch.arange(4).expand(2, -1)
    for name, call in {
        "saturation": lambda: saturation(images, ones),
        "hue": lambda: hue(images, ones),
        "grayscale": lambda: grayscale(images, ones.bool()),
    }.items():
        with pytest.raises(ValueError, match=f"{name} needs images with 3 channels, got {channels}; set {name} to 0"):
            call()
    with pytest.raises(ValueError, match="saturation needs images with 3 channels"):
        colour_jitter(images, Jitter(ones, ones, ones, None, order))
    with pytest.raises(ValueError, match="hue needs images with 3 channels"):
        colour_jitter(images, Jitter(ones, ones, None, ones, order), "fused")


def jitter_by_torchvision(image: torch.Tensor, jitter: Jitter, i: int) -> torch.Tensor:
    for step in jitter.order[i].tolist():
        factors = jitter[step]
        image = image if factors is None else TORCHVISION[step](image, factors[i].item())
    return image


@pytest.mark.parametrize("strengths", [(0.8, 0.8, 0.8, 0.2), (0.4, 0.4, 0, 0.5), (0.8, 0, 0.8, 0), (0, 0, 0, 0.1)])
def test_jitter_equals_torchvision_in_each_order(strengths):
    images = torch.rand(200, 3, 5, 6, generator=torch.Generator().manual_seed(0))
    jitter = draw_jitter(KEYS[:200], *strengths)
    assert len(jitter.order.unique(dim=0)) == 24
    result = colour_jitter(images, jitter)
    for i in range(200):
        torch.testing.assert_close(result[i], jitter_by_torchvision(images[i], jitter, i), atol=1e-5, rtol=0)


@pytest.mark.parametrize("form", ["exact", "fused"])
@pytest.mark.parametrize("channels", [1, 4])
def test_jitter_of_other_channel_counts_equals_its_steps(form, channels):
    images = torch.rand(BATCH, channels, 6, 6) * 0.2 + 0.4
    jitter = draw_jitter(KEYS[:BATCH], 0.2, 0.2, 0, 0)
    assert jitter.brightness is not None
    assert jitter.contrast is not None
    contrast_first = jitter.order.argsort(1)[:, 1] < jitter.order.argsort(1)[:, 0]
    one = contrast(brightness(images, jitter.brightness), jitter.contrast)
    other = brightness(contrast(images, jitter.contrast), jitter.brightness)
    expected = torch.where(contrast_first[:, None, None, None], other, one)
    torch.testing.assert_close(colour_jitter(images, jitter, form), expected, atol=1e-6, rtol=0)


def test_fused_equals_exact_where_nothing_is_clamped_and_the_hue_turns_by_thirds():
    images = torch.rand(100, 3, 6, 6, generator=torch.Generator().manual_seed(0)) * 0.2 + 0.4
    jitter = draw_jitter(KEYS[:100], 0.2, 0.3, 0.3, 0.0)
    torch.testing.assert_close(colour_jitter(images, jitter, "fused"), colour_jitter(images, jitter), atol=1e-6, rtol=0)
    jitter = jitter._replace(hue=torch.tensor([1 / 3, -1 / 3]).repeat(50))
    # the luma that saturation and contrast refer to changes with the hue, in both forms
    torch.testing.assert_close(colour_jitter(images, jitter, "fused"), colour_jitter(images, jitter), atol=1e-5, rtol=0)


def smooth_images(num: int) -> torch.Tensor:
    """Images with the statistics that matter here: smooth, mostly of moderate saturation."""
    generator = torch.Generator().manual_seed(0)
    luma = torch.rand(num, 1, 4, 4, generator=generator)
    chroma = 0.15 * torch.randn(num, 3, 3, 3, generator=generator)
    resized = [torch.nn.functional.interpolate(part, size=24, mode="bicubic") for part in (luma, chroma)]
    return (resized[0] + resized[1]).clamp(0, 1)


def test_fused_is_near_exact():
    images = smooth_images(400)
    jitter = draw_jitter(KEYS[:400], 0.8, 0.8, 0.8, 0.2)
    exact, fused = colour_jitter(images, jitter), colour_jitter(images, jitter, "fused")
    assert (exact - fused).abs().mean() < 0.03
    assert (exact - fused).abs().mean() < 0.2 * (exact - images).abs().mean()
    jitter = draw_jitter(KEYS[:400], 0.8, 0.8, 0.8, 0)
    assert (colour_jitter(images, jitter) - colour_jitter(images, jitter, "fused")).abs().mean() < 0.01


def test_jitter_parameters_are_uniform_in_torchvisions_ranges_and_independent():
    jitter = draw_jitter(KEYS, 0.4, 1.5, 0.8, 0.3)
    assert jitter.brightness is not None
    assert jitter.contrast is not None
    assert jitter.saturation is not None
    assert jitter.hue is not None
    ranges = [(0.6, 1.4), (0.0, 2.5), (0.2, 1.8), (-0.3, 0.3)]
    drawn = torch.stack([jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue])
    for factors, (low, high) in zip(drawn, ranges, strict=True):
        assert low <= factors.min() < low + 0.01 * (high - low)
        assert high >= factors.max() > high - 0.01 * (high - low)
        counts = torch.histc(factors, 20, low, high)
        assert ((counts - 200) ** 2 / 200).sum() < 19 + 5 * math.sqrt(2 * 19)
    assert (torch.corrcoef(drawn) - torch.eye(4)).abs().max() < 0.08


def test_jitter_is_applied_to_the_asked_share_and_leaves_the_rest_alone():
    jitter = draw_jitter(KEYS, 0.4, 0.4, 0.4, 0.1, prob=0.8)
    assert jitter.brightness is not None
    kept = jitter.brightness == 1
    assert abs(kept.float().mean() - 0.2) < 0.03
    for factors, neutral in zip(jitter[:4], (1, 1, 1, 0), strict=True):
        assert factors is not None
        assert torch.equal(factors == neutral, kept)
    images = torch.rand(len(KEYS), 3, 2, 2)
    for form in ("exact", "fused"):
        result = colour_jitter(images, jitter, form)
        torch.testing.assert_close(result[kept], images[kept], atol=2e-6, rtol=0)
        assert ((result[~kept] - images[~kept]).abs().amax((1, 2, 3)) > 1e-3).float().mean() > 0.99


def test_jitter_keeps_full_precision_under_autocast(images):
    jitter = draw_jitter(KEYS[:BATCH], 0.4, 0.4, 0.4, 0.1)
    for form in ("exact", "fused"):
        with torch.autocast("cpu", torch.bfloat16):
            result = colour_jitter(images, jitter, form)
        assert torch.equal(result, colour_jitter(images, jitter, form))
