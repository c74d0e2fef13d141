"""Policies against torchvision's own spaces of operations, the laws of the keys, and the arguments."""

import itertools
import math
import re

import jsonargparse
import pytest
import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from ssl_toolkit.augment import AugMix, Policy, RandAugment, RandomView, TrivialAugment, View, operations
from ssl_toolkit.augment.policies import Steps
from ssl_toolkit.batch import Images
from ssl_toolkit.random import fold_in, gamma, sample_keys

NAMES = ["ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast", "Sharpness",
         "Posterize", "Solarize", "AutoContrast", "Equalize", "Identity"]  # fmt: skip
POLICIES = [RandAugment(), RandAugment(3, 30), TrivialAugment(), AugMix(), AugMix(8, 2, 2, 0.5, True)]
KEYS = sample_keys(0, 0, torch.arange(3000))
PLAIN = {"hflip": 0.0, "jitter_prob": 0.0, "grayscale": 0.0, "blur": 0.0, "scale": (1.0, 1.0), "ratio": (1.0, 1.0)}


def test_operations_are_numbered_as_named():
    numbers = [operations.SHEAR_X, operations.SHEAR_Y, operations.TRANSLATE_X, operations.TRANSLATE_Y,
               operations.ROTATE, operations.BRIGHTNESS, operations.COLOUR, operations.CONTRAST, operations.SHARPNESS,
               operations.POSTERIZE, operations.SOLARIZE, operations.AUTOCONTRAST, operations.EQUALIZE,
               operations.IDENTITY]  # fmt: skip
    assert numbers == list(range(len(NAMES)))


@pytest.mark.parametrize(
    ("policy", "theirs", "index"),
    [(RandAugment(2, 9), v2.RandAugment, 9), (RandAugment(2, 24), v2.RandAugment, 24),
     (TrivialAugment(), v2.TrivialAugmentWide, None)],
)  # fmt: skip
def test_a_view_is_what_torchvision_makes_of_what_was_drawn(policy, theirs, index):
    size, num = 224, 300
    steps = policy.draw(KEYS[:num], size)
    # torchvision's own table of magnitudes and its own call of each operation; mid-grey is moved to its black
    transform = theirs(interpolation=InterpolationMode.BILINEAR)
    for i in range(num):
        for operation, amount in zip(steps.operations[i, 0].tolist(), steps.amounts[i, 0].tolist(), strict=True):
            magnitudes, signed = transform._AUGMENTATION_SPACE[NAMES[operation]]
            values = magnitudes(31, size, size)
            if values is None:
                continue
            allowed = values.float() if index is None else values[index : index + 1].float()
            given = amount - 1 if operation in operations.ENHANCING else amount
            if NAMES[operation].startswith("Translate"):
                allowed = (allowed + 1e-3).trunc()  # of 15.999999, which rounding made of 16
            assert (allowed - (abs(given) if signed else given)).abs().min() < 1e-5, NAMES[operation]
    images = torch.rand(28, 3, 24, 24)
    steps = policy.draw(KEYS[:28], 24)
    result = policy(images, steps)
    for i in range(28):
        image = images[i]
        for operation, amount in zip(steps.operations[i, 0].tolist(), steps.amounts[i, 0].tolist(), strict=True):
            grey = 0.5 if operation in operations.GEOMETRIC else 0.0
            given = amount - 1 if operation in operations.ENHANCING else amount
            options = {"interpolation": InterpolationMode.BILINEAR, "fill": {}}
            name = NAMES[operation]
            image = grey + transform._apply_image_or_video_transform(image - grey, name, given, **options)
        # where an operation has steps, a last bit may decide
        assert ((result[i] - image).abs() > 1e-4).float().mean() < 0.01


def test_augmix_is_the_weighted_sum_of_its_chains():
    images, policy = torch.rand(40, 3, 20, 20), AugMix(5)
    steps = policy.draw(KEYS[:40], 20)
    assert steps.weights is not None
    result = policy(images, steps)
    for i in range(40):
        mixed = steps.weights[i, 0] * images[i]
        for chain in range(3):
            one = operations.apply(images[i : i + 1], steps.operations[i, chain][None], steps.amounts[i, chain][None])
            mixed = mixed + steps.weights[i, chain + 1] * one[0]
        torch.testing.assert_close(result[i], mixed, atol=1e-5, rtol=0)


def test_weights_and_depths_of_augmix_are_distributed_as_the_paper_says():
    for alpha in (0.5, 1.0, 3.0):
        steps = AugMix(alpha=alpha).draw(KEYS, 32)
        assert steps.weights is not None
        torch.testing.assert_close(steps.weights.sum(1), torch.ones(len(KEYS)))
        own, fractions = steps.weights[:, 0], steps.weights[:, 1:] / (1 - steps.weights[:, :1])
        # Beta(a, a) has variance 1 / (4 (2a + 1)), a part of Dirichlet(a, a, a) 2 / (9 (3a + 1))
        assert abs(own.mean() - 0.5) < 0.02
        assert abs(own.var() * 4 * (2 * alpha + 1) - 1) < 0.08
        assert (fractions.mean(0) - 1 / 3).abs().max() < 0.02
        assert (fractions.var(0) * 9 * (3 * alpha + 1) / 2 - 1).abs().max() < 0.15
    depths = (steps.operations != operations.IDENTITY).sum(-1)
    counts = torch.bincount(depths.flatten(), minlength=4)[1:] / depths.numel()
    assert (counts - 1 / 3).abs().max() < 0.03
    assert set(steps.operations.unique().tolist()) == set(range(14)) - {5, 6, 7, 8}


@pytest.mark.parametrize("shape", [0.3, 1.0, 2.5])
def test_gamma_numbers_are_distributed_as_torchs(shape):
    ours = gamma(KEYS, shape, 4).flatten().sort().values
    torch.manual_seed(0)
    theirs = torch.distributions.Gamma(shape, 1.0).sample(torch.Size([len(ours)])).sort().values
    places = torch.cat([ours, theirs])
    below = [torch.searchsorted(each, places, right=True) / len(each) for each in (ours, theirs)]
    assert (below[0] - below[1]).abs().max() < math.sqrt(-math.log(0.0003 / 2) / len(ours))
    assert torch.equal(gamma(KEYS, shape), gamma(KEYS, shape, 1)[:, 0])


def test_operations_and_signs_are_drawn_uniformly_and_anew_for_each_step():
    steps = RandAugment(2, 15).draw(KEYS, 64)
    counts = torch.bincount(steps.operations.flatten(), minlength=14)
    assert ((counts - 6000 / 14) ** 2 / (6000 / 14)).sum() < 13 + 5 * math.sqrt(26)
    turns = steps.amounts[steps.operations == operations.ROTATE]
    assert set(turns.tolist()) == {-15.0, 15.0}
    assert abs((turns > 0).float().mean() - 0.5) < 0.08
    equal = (steps.operations[:, 0, 0] == steps.operations[:, 0, 1]).float().mean()
    assert abs(equal - 1 / 14) < 0.03


@pytest.fixture
def images() -> Images:
    return Images(torch.randint(0, 256, (40, 3, 24, 24), dtype=torch.uint8), torch.full((40, 2), 24))


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_a_sample_is_changed_alike_in_any_batch(policy, images):
    keys = KEYS[:40]
    pixels = images.pixels / 255
    whole = policy(pixels, policy.draw(keys, 24))
    assert whole.shape == pixels.shape
    assert whole.min() >= 0
    assert whole.max() <= 1 + 1e-5
    assert ((whole - pixels).abs().amax((1, 2, 3)) > 1e-3).float().mean() > 0.5
    order = torch.randperm(40)
    torch.testing.assert_close(policy(pixels[order], policy.draw(keys[order], 24)), whole[order], atol=1e-5, rtol=0)
    for part in torch.arange(40).split(7):
        torch.testing.assert_close(policy(pixels[part], policy.draw(keys[part], 24)), whole[part], atol=1e-5, rtol=0)
    # by the view, in parts, at once with another, and with none
    view = RandomView(24, policy=policy, **PLAIN)  # pyright: ignore[reportArgumentType]
    torch.testing.assert_close(view(images, keys), policy(pixels, policy.draw(fold_in(keys, "policy"), 24)))
    both = view(images, torch.stack([keys, keys]))
    assert torch.equal(both[0], both[1])
    assert view(Images(images.pixels[:0], images.sizes[:0]), keys[:0]).shape == (0, 3, 24, 24)
    assert not view(images, keys + 1).equal(both[0])


def test_batches_made_in_parts_leave_no_trace(images, monkeypatch):
    for policy in POLICIES:
        view = RandomView(24, policy=policy, rotation=20, **PLAIN)  # pyright: ignore[reportArgumentType]
        expected = view(images, KEYS[:40])
        with monkeypatch.context() as patch:
            patch.setattr("ssl_toolkit.augment.base._VALUES_AT_ONCE", 7 * 3 * 24 * 24)
            torch.testing.assert_close(view(images, KEYS[:40]), expected, atol=1e-5, rtol=0)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(view(images, KEYS[:40]), expected)


def test_the_policy_comes_before_the_jitter_and_erasing_last(images):
    class Black(Policy):
        def draw(self, keys, side):
            nothing = torch.zeros(len(keys), 1, 1)
            return Steps(nothing.long(), nothing)

        def __call__(self, images, steps):
            return torch.zeros_like(images)

    view = RandomView(24, policy=Black(), erase=1.0)(images, KEYS[:40])
    assert set(view.unique().tolist()) == {0.0, 0.5}


def test_rotation_is_uniform_and_is_torchvisions(images):
    keys = KEYS[:40]
    view = RandomView(24, rotation=40, **PLAIN)  # pyright: ignore[reportArgumentType]
    drawn = view._draw(images.sizes, keys).angles
    assert drawn is not None
    many = view._draw(torch.full((3000, 2), 24), KEYS).angles
    assert many is not None
    assert -40 <= many.min() < -39
    assert 39 < many.max() <= 40
    assert abs(many.mean()) < 2
    result = view(images, keys)
    for i in range(40):
        expected = 0.5 + tv.rotate(images.pixels[i] / 255 - 0.5, drawn[i].item(), InterpolationMode.BILINEAR)
        torch.testing.assert_close(result[i], expected, atol=2e-5, rtol=0)


def test_smaller_views_show_the_same_moves():
    for policy in POLICIES[:3]:
        large, small = policy.draw(KEYS, 64), policy.draw(KEYS, 32)
        assert torch.equal(large.operations, small.operations)
        moved = (large.operations == operations.TRANSLATE_X) | (large.operations == operations.TRANSLATE_Y)
        assert (large.amounts[moved] / 2 - small.amounts[moved]).abs().max() < 1
        assert torch.equal(large.amounts[~moved], small.amounts[~moved])


def test_policies_are_components_of_the_command_line():
    def build(view: View) -> View:
        return view

    args = ["--view=ssl_toolkit.augment.RandomView", "--view.policy=ssl_toolkit.augment.RandAugment",
            "--view.policy.magnitude=5", "--view.rotation=10"]  # fmt: skip
    view = jsonargparse.auto_cli(build, as_positional=False, args=args)
    assert repr(view) == "RandomView(size=224, rotation=10.0, policy=RandAugment(num_ops=2, magnitude=5.0))"


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: RandAugment(0), "RandAugment: num_ops is at least 1, got 0"),
        (lambda: RandAugment(2, 31), "RandAugment: magnitude is a number from 0 to 30, got 31"),
        (lambda: AugMix(0.5), "AugMix: severity is a number from 1 to 10, got 0.5"),
        (lambda: AugMix(width=0), "AugMix: width and depth are at least 1, got width=0, depth=None"),
        (lambda: AugMix(depth=0), "AugMix: width and depth are at least 1, got width=3, depth=0"),
        (lambda: AugMix(alpha=0), "AugMix: alpha is above 0, got 0"),
        (lambda: RandomView(rotation=181), "rotation is a number of degrees in [0, 180], got 181"),
    ],
)
def test_wrong_arguments_are_named_in_one_line(build, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        build()


def test_equal_keys_of_two_policies_draw_the_same_from_any_device_and_generator():
    state = torch.get_rng_state()
    for policy, other in itertools.pairwise((AugMix(), AugMix())):
        for one, two in zip(policy.draw(KEYS, 32), other.draw(KEYS, 32), strict=True):
            assert one is not None
            assert two is not None
            assert torch.equal(one, two)
    assert torch.equal(torch.get_rng_state(), state)
