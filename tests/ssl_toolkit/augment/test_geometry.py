"""Crops, resizes and blurs against torchvision's functional result, image by image."""

import pytest
import torch
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from ssl_toolkit.augment import (
    centre_boxes,
    crop_resize,
    gaussian_blur,
    geometry,
    random_resized_crop_boxes,
    reduce_resolution,
)
from ssl_toolkit.batch import Images
from ssl_toolkit.random import sample_keys

BATCH = 24


@pytest.fixture(autouse=True, params=["products", "one after the other"])
def way(request, monkeypatch):
    """Both ways of resizing, whatever the images' size."""
    monkeypatch.setattr(geometry, "_LARGE", {"products": 1000, "one after the other": 1}[request.param])


@pytest.fixture
def images() -> Images:
    """Images of different sizes on one canvas; what lies outside of them is not zero, to show that it is not read."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (BATCH, 3, 40, 52), dtype=torch.uint8, generator=generator)
    heights = torch.randint(6, 41, (BATCH,), generator=generator)
    widths = torch.randint(6, 53, (BATCH,), generator=generator)
    return Images(pixels, torch.stack([heights, widths], dim=1))


def resized_crop(pixels: torch.Tensor, box: torch.Tensor, size: tuple[int, int], mode: str) -> torch.Tensor:
    top, left, height, width = (int(value) for value in box)
    image = pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels
    return tv.resized_crop(image, top, left, height, width, list(size), InterpolationMode(mode), antialias=True)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(32, 32), (5, 7), (64, 20), (1, 1)])
def test_random_boxes_equal_torchvision(images, size, interpolation):
    boxes = random_resized_crop_boxes(images.sizes, sample_keys(0, 0, torch.arange(BATCH)))
    result = crop_resize(images, boxes, size, interpolation=interpolation)
    assert result.dtype == torch.float32
    for i in range(BATCH):
        expected = resized_crop(images.pixels[i], boxes[i], size, interpolation)
        torch.testing.assert_close(result[i], expected, atol=1e-5, rtol=0)


def test_boxes_at_the_borders_and_whole_images_equal_torchvision(images):
    for corner in ("top left", "bottom right", "whole", "one pixel", "one row"):
        boxes = []
        for height, width in images.sizes.tolist():
            boxes.append(
                {
                    "top left": (0, 0, height - 3, width - 2),
                    "bottom right": (height - 4, width - 5, 4, 5),
                    "whole": (0, 0, height, width),
                    "one pixel": (height - 1, width - 1, 1, 1),
                    "one row": (height // 2, 0, 1, width),
                }[corner]
            )
        boxes = torch.tensor(boxes)
        result = crop_resize(images, boxes, 16)
        for i in range(BATCH):
            expected = resized_crop(images.pixels[i], boxes[i], (16, 16), "bilinear")
            torch.testing.assert_close(result[i], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_any_number_of_channels_as_bytes_or_floats(channels, dtype):
    pixels = torch.randint(0, 256, (6, channels, 20, 16), dtype=torch.uint8)
    pixels = pixels if dtype == torch.uint8 else pixels.float() / 255
    boxes = torch.tensor([[2, 3, 11, 9]]).expand(6, -1)
    result = crop_resize(pixels, boxes, 8)
    for i in range(6):
        expected = resized_crop(pixels[i], boxes[i], (8, 8), "bilinear")
        torch.testing.assert_close(result[i], expected, atol=1e-5, rtol=0)


def test_each_sample_is_flipped_or_not_as_told(images):
    boxes = random_resized_crop_boxes(images.sizes, sample_keys(0, 0, torch.arange(BATCH)))
    plain = crop_resize(images, boxes, 12)
    flip = torch.arange(BATCH) % 2 == 0
    vertical = torch.arange(BATCH) % 3 == 0
    result = crop_resize(images, boxes, 12, flip, vertical)
    for i in range(BATCH):
        expected = tv.horizontal_flip(plain[i]) if flip[i] else plain[i]
        expected = tv.vertical_flip(expected) if vertical[i] else expected
        torch.testing.assert_close(result[i], expected, atol=1e-6, rtol=0)


def test_a_box_of_the_size_of_the_result_copies_the_pixels(images):
    boxes = torch.tensor([[0.0, 0, 6, 6]]).expand(BATCH, -1)
    expected = images.pixels[:, :, :6, :6].float() / 255
    torch.testing.assert_close(crop_resize(images, boxes, 6), expected, atol=1e-7, rtol=0)


def test_nothing_outside_the_box_is_read():
    pixels = torch.full((1, 1, 12, 12), 99.0)
    pixels[:, :, 2:7, 3:9] = 0.25
    result = crop_resize(pixels, torch.tensor([[2.0, 3, 5, 6]]), 20, interpolation="bicubic")
    torch.testing.assert_close(result, torch.full_like(result, 0.25))


def test_boxes_between_pixels_move_the_result_continuously(images):
    gradient = torch.arange(40.0).view(1, 1, 1, 40).expand(1, 1, 40, 40)
    result = crop_resize(gradient, torch.tensor([[4.5, 10.25, 20.0, 20.0]]), 20)
    # an output in the middle lies at the centre of its quarter-shifted pixel
    torch.testing.assert_close(result[0, 0, 10, 5:15], torch.arange(15.25, 25.0))
    near = crop_resize(images, torch.tensor([[1.0, 1, 4, 4]]).expand(BATCH, -1) + 1e-4, 8)
    far = crop_resize(images, torch.tensor([[1.0, 1, 4, 4]]).expand(BATCH, -1), 8)
    assert (near - far).abs().max() < 1e-3


@pytest.mark.parametrize("kernel_size", [1, 3, 7, 23])
@pytest.mark.parametrize("size", [(24, 24), (17, 30)])
def test_blur_equals_torchvision(kernel_size, size):
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(BATCH, 3, *size, generator=generator)
    sigmas = torch.rand(BATCH, generator=generator) * 3 + 0.1
    result = gaussian_blur(images, sigmas, kernel_size)
    for i in range(BATCH):
        expected = tv.gaussian_blur(images[i], [kernel_size, kernel_size], [sigmas[i].item()] * 2)
        torch.testing.assert_close(result[i], expected, atol=1e-5, rtol=0)


def test_blur_of_zero_changes_nothing():
    images = torch.rand(4, 3, 16, 16)
    sigmas = torch.tensor([0.0, 1.0, 0.0, 1.0])
    result = gaussian_blur(images, sigmas, 5)
    assert torch.equal(result[::2], images[::2])
    assert not torch.equal(result[1::2], images[1::2])


def test_blur_with_the_resize_equals_blur_after_it(images):
    boxes = random_resized_crop_boxes(images.sizes, sample_keys(0, 0, torch.arange(BATCH)))
    sigmas = torch.rand(BATCH) * 2
    sigmas[0] = 0
    expected = gaussian_blur(crop_resize(images, boxes, 20), sigmas, 5)
    result = crop_resize(images, boxes, 20, blur=sigmas, blur_kernel=5)
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=0)


def test_blur_kernels_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match="odd number of pixels, got 4"):
        gaussian_blur(torch.rand(1, 3, 8, 8), torch.ones(1), 4)
    with pytest.raises(ValueError, match="of 17 pixels needs images of at least 9, got 8"):
        gaussian_blur(torch.rand(1, 3, 8, 8), torch.ones(1), 17)


def test_lower_resolution_equals_two_resizes_of_torchvision():
    images = torch.rand(BATCH, 3, 24, 24)
    sides = torch.arange(1, BATCH + 1)
    result = reduce_resolution(images, sides)
    for i, side in enumerate(sides.tolist()):
        small = tv.resize(images[i], [side, side], antialias=True)
        torch.testing.assert_close(result[i], tv.resize(small, [24, 24], antialias=True), atol=1e-5, rtol=0)
    torch.testing.assert_close(result[-1], images[-1])


def test_centre_boxes_equal_torchvision_after_rounding_down(images):
    boxes = centre_boxes(images.sizes)
    result = crop_resize(images, boxes, 10)
    for i, (height, width) in enumerate(images.sizes.tolist()):
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        assert boxes[i].tolist() == [top, left, side, side]
        expected = resized_crop(images.pixels[i], boxes[i], (10, 10), "bilinear")
        torch.testing.assert_close(result[i], expected, atol=1e-5, rtol=0)
    assert centre_boxes(torch.tensor([[256, 300]]), 0.875).tolist() == [[16, 38, 224, 224]]


def test_results_keep_full_precision_under_autocast(images):
    boxes = centre_boxes(images.sizes)
    expected = crop_resize(images, boxes, 12, blur=torch.ones(BATCH))
    with torch.autocast("cpu", torch.bfloat16):
        result = crop_resize(images, boxes, 12, blur=torch.ones(BATCH))
        blurred = gaussian_blur(expected, torch.ones(BATCH), 3)
        coarse = reduce_resolution(expected, torch.full((BATCH,), 6))
    assert torch.equal(result, expected)
    assert torch.equal(blurred, gaussian_blur(expected, torch.ones(BATCH), 3))
    assert torch.equal(coarse, reduce_resolution(expected, torch.full((BATCH,), 6)))
