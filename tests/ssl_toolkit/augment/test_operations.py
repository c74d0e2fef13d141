"""The policies' operations against torchvision's functional result, image by image."""

import math

import pytest
import torch
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from ssl_toolkit.augment import (
    autocontrast,
    equalize,
    operations,
    posterize,
    rotate,
    sharpness,
    shear,
    solarize_above,
    translate,
)

BATCH = 30
BILINEAR = InterpolationMode.BILINEAR


@pytest.fixture
def images() -> torch.Tensor:
    """Bytes as floats: noise, narrow ranges, one value, few values."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(BATCH, 3, 25, 31, generator=generator)
    images[5:15] = 0.3 + 0.3 * images[5:15]
    images[15] = 0.5
    images[16, 1] = 0
    images[17:20] = (3 * images[17:20]).round() / 3
    return (255 * images).round() / 255


def uniform(low: float, high: float) -> torch.Tensor:
    return low + (high - low) * torch.rand(BATCH, generator=torch.Generator().manual_seed(1))


def affine(image: torch.Tensor, angle: float = 0.0, move=(0, 0), sheared=(0.0, 0.0), centre=None) -> torch.Tensor:
    """torchvision's, with mid-grey outside."""
    shears = [math.degrees(math.atan(each)) for each in sheared]
    return 0.5 + tv.affine(image - 0.5, angle, list(move), 1.0, shears, BILINEAR, center=centre)


def test_warps_equal_torchvision(images):
    degrees, amounts, moves = uniform(-180, 180), uniform(-0.99, 0.99), uniform(-20, 20).trunc()
    zeros = torch.zeros(BATCH)
    results = {
        "rotate": rotate(images, degrees), "x": shear(images, amounts, zeros), "y": shear(images, zeros, amounts),
        "right": translate(images, moves, zeros), "down": translate(images, zeros, moves),
    }  # fmt: skip
    for i, image in enumerate(images):
        amount, move = amounts[i].item(), int(moves[i])
        expected = {
            "rotate": 0.5 + tv.rotate(image - 0.5, degrees[i].item(), BILINEAR),
            "x": affine(image, sheared=(amount, 0.0), centre=[0, 0]),
            "y": affine(image, sheared=(0.0, amount), centre=[0, 0]),
            "right": affine(image, move=(move, 0)),
            "down": affine(image, move=(0, move)),
        }
        for name, result in results.items():
            torch.testing.assert_close(result[i], expected[name], atol=2e-5, rtol=0, msg=name)


def test_a_quarter_turn_and_a_move_of_whole_pixels_by_hand():
    image = torch.arange(16.0).view(1, 1, 4, 4) / 16
    torch.testing.assert_close(rotate(image, torch.tensor([90.0])), torch.rot90(image, 1, (2, 3)))
    moved = translate(image, torch.tensor([1.0]), torch.tensor([-2.0]))
    expected = torch.full_like(image, 0.5)
    expected[..., :2, 1:] = image[..., 2:, :3]
    torch.testing.assert_close(moved, expected)


def test_tones_equal_torchvision(images):
    factors, thresholds, bits = uniform(0, 2), uniform(0, 1), (torch.arange(BATCH) % 8) + 1
    thresholds[:5] = images[:5, 0, 0, 0]  # some values lie exactly at theirs
    results = [
        sharpness(images, factors), posterize(images, bits), solarize_above(images, thresholds), autocontrast(images),
        equalize(images),
    ]  # fmt: skip
    for i, image in enumerate(images):
        expected = [
            tv.adjust_sharpness(image, factors[i].item()), tv.posterize(image, int(bits[i])),
            tv.solarize(image, thresholds[i].item()), tv.autocontrast(image), tv.equalize(image),
        ]  # fmt: skip
        for result, theirs, tolerance in zip(results, expected, (1e-6, 1e-7, 0, 1e-5, 1e-7), strict=True):
            torch.testing.assert_close(result[i], theirs, atol=tolerance, rtol=0)


def test_equalize_is_exact_to_the_byte(images):
    images = torch.cat([images, torch.rand(20, 3, 25, 31) ** 4])
    bytes_ = (images * 255.999).to(torch.uint8)
    expected = torch.stack([tv.equalize(each) for each in bytes_])
    assert torch.equal((equalize(bytes_.float() / 255) * 255).round().to(torch.uint8), expected)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_batch_of_all_operations_equals_each_on_its_own(channels):
    images = torch.rand(operations.NUM_OPERATIONS * 3, channels, 20, 20)
    steps = torch.stack([torch.arange(len(images)) % 14, torch.arange(len(images)).flip(0) % 14], dim=1)
    amounts = torch.full(steps.shape, 0.7)
    amounts[(steps == operations.POSTERIZE)] = 3.0
    kept = images.clone()
    result = operations.apply(images, steps, amounts)
    assert torch.equal(images, kept)
    for i in range(len(images)):
        one = slice(i, i + 1)
        torch.testing.assert_close(operations.apply(images[one], steps[one], amounts[one]), result[one])
    same = (steps == operations.IDENTITY).all(1)
    assert torch.equal(result[same], images[same])
    assert result.min() >= 0
    assert result.max() <= 1 + 1e-6


def test_small_images_are_not_sharpened(images):
    small = images[:, :, :2]
    assert torch.equal(sharpness(small, torch.full((BATCH,), 2.0)), small)
