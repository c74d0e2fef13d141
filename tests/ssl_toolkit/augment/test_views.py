"""Views: the whole chain against torchvision's functions, the laws of the keys, and the arguments."""

import contextlib
import re
from typing import Any

import jsonargparse
import pytest
import torch
from torchvision.transforms.v2 import functional as tv

from ssl_toolkit.augment import CenterView, RandomView, View, draw_jitter, random_resized_crop_boxes
from ssl_toolkit.batch import Images
from ssl_toolkit.random import fold_in, sample_keys, uniform

NUM = 40
FULL: dict[str, Any] = {"vflip": 0.5, "solarize": 0.3, "erase": 0.3}


@pytest.fixture
def images() -> Images:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (NUM, 3, 36, 44), dtype=torch.uint8, generator=generator)
    heights = torch.randint(8, 37, (NUM,), generator=generator)
    widths = torch.randint(8, 45, (NUM,), generator=generator)
    return Images(pixels, torch.stack([heights, widths], dim=1))


@pytest.fixture
def keys() -> torch.Tensor:
    return sample_keys(0, 0, torch.arange(NUM))


def take(images: Images, places: torch.Tensor) -> Images:
    return Images(images.pixels[places], images.sizes[places])


def test_the_whole_chain_equals_torchvision_step_by_step(images, keys):
    view = RandomView(24, blur=0.7, blur_sigma=(0.5, 2.0), blur_kernel=5, solarize=0.4, vflip=0.3)
    boxes = random_resized_crop_boxes(images.sizes, fold_in(keys, "crop"), view.scale, view.ratio).int().tolist()
    jitter = draw_jitter(fold_in(keys, "jitter"), 0.8, 0.8, 0.8, 0.2, 0.8)

    def chosen(name: str, prob: float) -> list[bool]:
        return (uniform(fold_in(keys, name)) < prob).tolist()

    hflip, vflip, gray = chosen("hflip", 0.5), chosen("vflip", 0.3), chosen("grayscale", 0.2)
    blur, solarize = chosen("blur", 0.7), chosen("solarize", 0.4)
    sigmas = uniform(fold_in(keys, "blur sigma"), None, 0.5, 2.0).tolist()
    steps = [tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue]
    result = view(images, keys)
    for i in range(NUM):
        top, left, height, width = boxes[i]
        image = images.pixels[i].float() / 255
        image = tv.resized_crop(image, top, left, height, width, [24, 24], antialias=True)
        image = tv.horizontal_flip(image) if hflip[i] else image
        image = tv.vertical_flip(image) if vflip[i] else image
        for step in jitter.order[i].tolist():
            factors = jitter[step]
            assert factors is not None
            image = steps[step](image, factors[i].item())
        image = tv.rgb_to_grayscale(image, 3) if gray[i] else image
        image = tv.gaussian_blur(image, [5, 5], [sigmas[i]] * 2) if blur[i] else image
        # a value at the threshold itself may fall on either side of it
        unsure = (image - 0.5).abs() < 1e-5 if solarize[i] else torch.zeros_like(image, dtype=torch.bool)
        image = tv.solarize(image, 0.5) if solarize[i] else image
        torch.testing.assert_close(result[i][~unsure], image[~unsure], atol=2e-5, rtol=0)


@pytest.mark.parametrize("form", ["exact", "fused"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_views_have_the_shape_type_and_range_they_guarantee(images, keys, form, interpolation):
    for view in (RandomView(20, form=form, interpolation=interpolation, **FULL), CenterView(20)):
        result = view(images, keys)
        assert result.shape == (NUM, 3, 20, 20)
        assert result.dtype == torch.float32
        assert result.min() >= 0
        assert result.max() <= 1 + 1e-6
        assert not result.requires_grad


@pytest.mark.parametrize("form", ["exact", "fused"])
def test_equal_images_in_a_batch_get_different_views(keys, form):
    pixels = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8).expand(NUM, -1, -1, -1)
    view = RandomView(32, form=form)(Images(pixels, torch.full((NUM, 2), 32)), keys)
    distances = torch.cdist(view.flatten(1), view.flatten(1)) + torch.eye(NUM)
    assert distances.min() > 1e-2


@pytest.mark.parametrize("form", ["exact", "fused"])
def test_a_key_gives_the_same_view_in_any_batch(images, keys, form):
    # solarizing is not continuous: a last bit may move a value over its threshold
    view = RandomView(24, form=form, vflip=0.5, erase=0.3)
    whole = view(images, keys)
    assert torch.equal(view(images, keys), whole)
    order = torch.randperm(NUM, generator=torch.Generator().manual_seed(0))
    # batched matrix products may round differently in batches of other sizes
    torch.testing.assert_close(view(take(images, order), keys[order]), whole[order], atol=1e-5, rtol=0)
    for part in torch.arange(NUM).split(7):
        torch.testing.assert_close(view(take(images, part), keys[part]), whole[part], atol=1e-5, rtol=0)
    one = torch.tensor([11])
    torch.testing.assert_close(view(take(images, one), keys[one]), whole[one], atol=1e-5, rtol=0)


def test_the_size_of_the_canvas_changes_nothing(images, keys):
    larger = torch.full((NUM, 3, 50, 70), 255, dtype=torch.uint8)
    larger[:, :, :36, :44] = images.pixels
    for view in (RandomView(24), RandomView(24, form="fused"), CenterView(24)):
        expected = view(images, keys)
        torch.testing.assert_close(view(Images(larger, images.sizes), keys), expected, atol=1e-5, rtol=0)


def test_large_batches_are_made_in_pieces_without_a_trace(keys, monkeypatch):
    images = Images(torch.randint(0, 256, (NUM, 3, 32, 32), dtype=torch.uint8), torch.full((NUM, 2), 32))
    expected = RandomView(16)(images, keys)
    monkeypatch.setattr("ssl_toolkit.augment.base._VALUES_AT_ONCE", 7 * 3 * 32 * 32)
    torch.testing.assert_close(RandomView(16)(images, keys), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("values_at_once", [2**21, 3 * 36 * 44 * 9])
def test_several_views_at_once_are_those_made_one_after_the_other(images, keys, values_at_once, monkeypatch):
    monkeypatch.setattr("ssl_toolkit.augment.base._VALUES_AT_ONCE", values_at_once)
    view = RandomView(24, **FULL)
    keys = fold_in(keys, torch.arange(3)[:, None])
    expected = torch.stack([view(images, each) for each in keys])
    # products of batches of another size are rounded otherwise
    torch.testing.assert_close(view(images, keys), expected, rtol=0, atol=2e-6)


def test_a_batch_of_none_and_of_one(images, keys):
    for view in (RandomView(16, **FULL), CenterView(16)):
        for num in (0, 1):
            assert view(take(images, torch.arange(num)), keys[:num]).shape == (num, 3, 16, 16)


def test_views_of_other_numbers_epochs_and_seeds_differ(images, keys):
    view = RandomView(16)
    next_epoch, next_seed = sample_keys(0, 1, torch.arange(NUM)), sample_keys(1, 0, torch.arange(NUM))
    results = [view(images, each) for each in (fold_in(keys, 0), fold_in(keys, 1), next_epoch, next_seed)]
    for i, one in enumerate(results):
        for other in results[:i]:
            assert ((one - other).abs().amax((1, 2, 3)) > 1e-3).all()


def test_no_global_generator_is_used_or_moved(images, keys):
    state = torch.get_rng_state()
    expected = RandomView(16, **FULL)(images, keys)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    assert torch.equal(RandomView(16, **FULL)(images, keys), expected)


@pytest.mark.parametrize("name", ["hflip", "vflip", "grayscale", "blur", "solarize", "erase"])
def test_probabilities_of_zero_and_one_change_none_and_all(name):
    off: dict[str, Any] = {
        "hflip": 0,
        "jitter_prob": 0,
        "grayscale": 0,
        "blur": 0,
        "scale": (1.0, 1.0),
        "ratio": (1.0, 1.0),
    }
    images = Images(torch.randint(0, 256, (400, 3, 16, 16), dtype=torch.uint8), torch.full((400, 2), 16))
    keys = sample_keys(0, 0, torch.arange(400))
    plain = images.pixels.float() / 255
    torch.testing.assert_close(RandomView(16, **off)(images, keys), plain)
    options = {"blur_sigma": (1.0, 2.0)}
    for prob, low, high in ((1.0, 1, 1), (0.3, 0.18, 0.42)):
        changed = RandomView(16, **{**off, **options, name: prob})(images, keys)
        fraction = ((changed - plain).abs().amax((1, 2, 3)) > 1e-3).float().mean()
        assert low <= fraction <= high


@pytest.mark.parametrize("form", ["exact", "fused"])
def test_a_grey_image_gives_the_same_view_with_one_channel_and_with_three_equal_ones(keys, form):
    grey = torch.randint(0, 256, (NUM, 1, 20, 20), dtype=torch.uint8)
    sizes = torch.full((NUM, 2), 20)
    view = RandomView(16, grayscale=0.5, form=form)
    as_colours = view(Images(grey.expand(-1, 3, -1, -1).contiguous(), sizes), keys)
    # the luma's weights of ITU-R BT.601 add up to 0.9999
    torch.testing.assert_close(view(Images(grey, sizes), keys).expand(-1, 3, -1, -1), as_colours, atol=5e-4, rtol=0)


@pytest.mark.parametrize("form", ["exact", "fused"])
def test_other_channel_counts_work_without_colours_and_say_so_with_them(keys, form):
    channels = 4
    images = Images(torch.randint(0, 256, (NUM, channels, 20, 20), dtype=torch.uint8), torch.full((NUM, 2), 20))
    assert RandomView(16, saturation=0, hue=0, grayscale=0, form=form)(images, keys).shape == (NUM, channels, 16, 16)
    assert CenterView(16)(images, keys).shape == (NUM, channels, 16, 16)
    needs: list[dict[str, Any]] = [{}, {"saturation": 0}, {"saturation": 0, "hue": 0}]
    for options in needs:
        with pytest.raises(ValueError, match=f"needs images with 3 channels, got {channels}; set (\\w+) to 0"):
            RandomView(16, form=form, **options)(images, keys)


def test_centre_view_equals_torchvision_and_reads_no_key(images, keys):
    view = CenterView(18)
    result = view(images, keys)
    assert torch.equal(view(images, keys + 1), result)
    for i, (height, width) in enumerate(images.sizes.tolist()):
        side = min(height, width)
        image = images.pixels[i].float() / 255
        box = ((height - side) // 2, (width - side) // 2, side, side)
        torch.testing.assert_close(result[i], tv.resized_crop(image, *box, [18, 18], antialias=True), atol=1e-5, rtol=0)


def test_centre_view_of_an_image_of_its_size_is_the_image(keys):
    pixels = torch.randint(0, 256, (NUM, 3, 32, 32), dtype=torch.uint8)
    result = CenterView(32)(Images(pixels, torch.full((NUM, 2), 32)), keys)
    torch.testing.assert_close(result, pixels.float() / 255, atol=1e-7, rtol=0)
    cut = CenterView(24, 0.75)(Images(pixels, torch.full((NUM, 2), 32)), keys)
    torch.testing.assert_close(cut, pixels[:, :, 4:28, 4:28].float() / 255, atol=1e-7, rtol=0)


def test_views_are_the_same_under_autocast(images, keys):
    for view in (RandomView(16), RandomView(16, form="fused"), CenterView(16)):
        with torch.autocast("cpu", torch.bfloat16):
            result = view(images, keys)
        assert torch.equal(result, view(images, keys))


@pytest.mark.parametrize("form", ["exact", "fused"])
def test_views_stay_on_their_device_and_never_wait_for_it(images, keys, form, monkeypatch):
    # tensors without values: a tensor of another device, or a look at a value, raises (and autocast knows no "meta")
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: contextlib.nullcontext())
    images, keys = Images(images.pixels.to("meta"), images.sizes.to("meta")), keys.to("meta")
    for view in (RandomView(16, form=form, **FULL), RandomView(16, interpolation="bicubic"), CenterView(16)):
        result = view(images, keys)
        assert result.device.type == "meta"
        assert result.shape == (NUM, 3, 16, 16)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "size is the side of the views in pixels, from 1, got 0"),
        ({"scale": (0.0, 1.0)}, "scale is a range [low, high] of shares of the area in (0, 1], got [0.0, 1.0]"),
        ({"scale": (0.5, 1.5)}, "scale is a range"),
        ({"scale": (0.9, 0.5)}, "scale is a range"),
        ({"ratio": (0.0, 1.0)}, "ratio is a range [low, high] of two numbers above 0, got [0.0, 1.0]"),
        ({"blur_sigma": (2.0, 0.1)}, "blur_sigma is a range"),
        ({"erase_scale": (0.1, 2.0)}, "erase_scale is a range"),
        ({"hflip": 1.5}, "hflip is a probability in [0, 1], got 1.5"),
        ({"grayscale": -0.1}, "grayscale is a probability in [0, 1], got -0.1"),
        ({"contrast": -1.0}, "contrast is a strength from 0, got -1.0"),
        ({"hue": 0.6}, "hue is a share of a full turn in [0, 0.5], got 0.6"),
        ({"blur_kernel": 4}, "blur_kernel is an odd number of pixels below twice the size, got 4 for size 224"),
        ({"size": 8, "blur_kernel": 17}, "blur_kernel is an odd number of pixels below twice the size, got 17"),
        ({"form": "fusd"}, "form is 'exact' or 'fused', got 'fusd'; did you mean 'fused'?"),
        ({"interpolation": "nearest"}, "interpolation is 'bilinear' or 'bicubic', got 'nearest'"),
    ],
)
def test_wrong_arguments_are_named_in_one_line(options, message):
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        RandomView(**options)
    assert "\n" not in str(error.value)


def test_wrong_arguments_of_the_centre_view_are_named():
    with pytest.raises(ValueError, match="crop_fraction is a share of the short side"):
        CenterView(32, 0)
    with pytest.raises(ValueError, match="size is the side of the views"):
        CenterView(-1)


def test_representations_name_what_differs_from_the_defaults():
    assert repr(CenterView(32)) == "CenterView(size=32, crop_fraction=1)"
    assert repr(RandomView()) == "RandomView(size=224)"
    assert repr(RandomView(32, (0.2, 1.0), blur=0, form="fused")) == (
        "RandomView(size=32, scale=(0.2, 1.0), blur=0, form='fused')"
    )


def test_views_are_components_of_the_command_line():
    def build(view: View) -> View:
        return view

    args = ["--view=ssl_toolkit.augment.RandomView", "--view.size=32", "--view.scale=[0.2, 1.0]"]
    view = jsonargparse.auto_cli(build, as_positional=False, args=args)
    assert isinstance(view, RandomView)
    assert repr(view) == "RandomView(size=32, scale=(0.2, 1.0))"
