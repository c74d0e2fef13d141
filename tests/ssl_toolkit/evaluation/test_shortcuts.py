"""The shortcut meter: patches and aberrations by hand, networks and images of which the answer is known."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from torch import nn

from ssl_toolkit.batch import Images
from ssl_toolkit.data import ImageData
from ssl_toolkit.evaluation import Interval, ShortcutDifference, ShortcutRow, evaluate, measure_shortcuts
from ssl_toolkit.evaluation.shortcut_views import PatchView
from ssl_toolkit.evaluation.shortcut_words import shortcut_words
from ssl_toolkit.evaluation.shortcuts import patch_side
from ssl_toolkit.modules.backbone import Backbone
from ssl_toolkit.random import sample_keys

KEYS = sample_keys(0, 0, torch.arange(40))
SIDE = 32


def images_of(pixels):
    return Images(pixels, torch.tensor(pixels.shape[2:]).expand(len(pixels), 2))


def write(folder, make, num=90):
    """Images in two classes; `make` gives the pixels of one from a generator of numpy."""
    generator = np.random.default_rng(0)
    for number in range(num):
        (folder / f"class{number % 2}").mkdir(parents=True, exist_ok=True)
        pixels = make(generator).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"class{number % 2}" / f"{number:03}.png")
    return folder


def noise(generator):
    return generator.integers(0, 256, (SIDE, SIDE, 3))


def lit_from_above(generator):
    """A cue of the row that no lens makes: brightness falls downwards."""
    return np.linspace(200, 40, SIDE)[:, None, None] + generator.normal(0, 10, (SIDE, SIDE, 3))


def bars(generator):
    """Grey bars at random places: smooth, so that a shift of less than a pixel shows."""
    down, right = (np.cumsum(generator.normal(0, 25, SIDE)) for _ in range(2))
    return np.repeat((128 + down[:, None] + right)[..., None], 3, axis=2)


def data_of(folder, **arguments):
    defaults = {"labels": "folder", "image_size": SIDE, "val_fraction": 0.2, "test_fraction": 0.2, "cache": "memory"}
    return ImageData(path=str(folder), batch_size=16, num_threads=1, **{**defaults, **arguments})


class Made(nn.Module):
    """A network whose features are a function of the patches."""

    def __init__(self, function):
        super().__init__()
        self.function, self.weight = function, nn.Parameter(torch.zeros(1))

    def stage_features(self, x):
        return {"pooled": self.function(x)}

    forward = stage_features


def measured(function, folder, **arguments):
    data = data_of(folder, **arguments)
    return measure_shortcuts({"given": Made(function)}, data, SIDE, 12)  # pyright: ignore[reportArgumentType]


def r2_of(found, what):
    return next(row for row in found.rows if row.what == what)


def test_patches_are_cut_where_they_are_said_to_lie():
    image = torch.arange(40 * 40, dtype=torch.float32).view(1, 1, 40, 40) / 1600
    view = PatchView(40, 10, seed=3)
    patches = view(images_of(image.expand(40, 3, 40, 40)), KEYS)
    for patch, (top, left), centre in zip(patches, view.corners(KEYS), view.positions(KEYS), strict=True):
        torch.testing.assert_close(patch, image[0, :, top : top + 10, left : left + 10].expand(3, 10, 10))
        assert centre.tolist() == [(float(top) + 5) / 40, (float(left) + 5) / 40]
    corners = view.corners(sample_keys(0, 0, torch.arange(2000)))
    assert (corners.min(), corners.max()) == (0, 30), "everywhere in the image"
    assert corners.float().mean(dim=0).tolist() == pytest.approx([15, 15], abs=0.7)


def test_places_depend_on_image_seed_and_number_alone():
    view = PatchView(40, 10, seed=3)
    assert torch.equal(view.corners(KEYS)[7:9], PatchView(40, 10, seed=3).corners(KEYS[7:9]))
    for other in (PatchView(40, 10, seed=4), PatchView(40, 10, 1, seed=3)):
        assert not torch.equal(other.corners(KEYS), view.corners(KEYS))


def test_red_and_blue_of_a_spot_lie_where_the_magnification_puts_them():
    """The centre of mass of a spot, in each colour, beside the centre plus its distance times 1 + a, 1 and 1 - a."""
    side, spot = 60, (20.5, 38.5)
    axis = torch.arange(side + 8) - 3.5  # the view's margin is 3 + 1 px at each side
    down, right = (torch.exp(-((axis - each) ** 2) / 8) for each in spot)
    pixels = (down[:, None] * right).expand(40, 3, -1, -1)
    view = PatchView(side, side, reach=3.0)
    a = view.magnifications(KEYS).double()
    most = 3 / (side / 2**0.5)
    assert -most <= a.min() < -0.7 * most
    assert 0.7 * most < a.max() <= most
    patches = view(images_of(pixels), KEYS).double()
    places = torch.arange(side, dtype=torch.float64) + 0.5
    for colour, factor in enumerate((1 + a, torch.ones_like(a), 1 - a)):
        mass = patches[:, colour].sum(dim=(1, 2))
        found = torch.stack([(patches[:, colour].sum(2) @ places), (patches[:, colour].sum(1) @ places)], 1)
        expected = 30 + (torch.tensor(spot) - 30) * factor[:, None].double()
        torch.testing.assert_close(found / mass[:, None], expected, atol=0.02, rtol=0)  # of up to 0.7 px


def test_the_shift_of_a_patch_is_that_of_red_against_blue_at_its_centre():
    view = PatchView(60, 20, reach=3.0)
    a, centres = view.magnifications(KEYS).double(), view.positions(KEYS) * 60
    red, blue = (30 + (centres - 30) * (1 + sign * a[:, None]) for sign in (1, -1))
    torch.testing.assert_close(view.shifts(KEYS), red - blue)


def test_grey_pixels_stay_grey_without_reach_and_one_channel_has_no_aberration():
    with pytest.raises(ValueError, match="3 channels, got 1"):
        PatchView(20, 10, reach=1.0)(images_of(torch.rand(40, 1, 20, 20)), KEYS)
    with pytest.raises(ValueError, match="a patch of 21 px in an image of 20 px"):
        PatchView(20, 21)
    assert PatchView(20, 10)(images_of(torch.rand(40, 1, 20, 20)), KEYS).shape == (40, 1, 10, 10)


def mean_colour(x):
    return x.mean(dim=(2, 3))


def test_brightness_that_falls_downwards_tells_the_row_and_not_the_column(tmp_path):
    row = r2_of(measured(mean_colour, write(tmp_path, lit_from_above)), "position")
    assert row.r2_down > 0.95
    assert abs(row.r2_right) < 0.2
    assert row.r2.low < row.r2.value < row.r2.high < 0.9
    # chance: a place is uniform over 20 px of 32 in both directions, of variance (21 ** 2 - 1) / 12 each
    assert row.chance_rmse == pytest.approx((2 * (21**2 - 1) / 12) ** 0.5 / 32, rel=0.2)
    assert row.rmse == pytest.approx(row.chance_rmse * (1 - row.r2.value) ** 0.5)


def test_noise_tells_nothing(tmp_path):
    found = measured(mean_colour, write(tmp_path, noise))
    for what in ("position", "aberration"):
        assert abs(r2_of(found, what).r2.value) < 0.1, what
    assert found.num_patches == {"train": 108, "val": 36, "test": 36}


def shift_of_red_against_blue(x):
    """Lucas and Kanade's estimate: the least squares shift that explains red minus blue by the gradient."""
    red, blue = x[:, 0], x[:, 2]
    middle = (red + blue) / 2
    down, right = (middle[:, 2:, 1:-1] - middle[:, :-2, 1:-1]) / 2, (middle[:, 1:-1, 2:] - middle[:, 1:-1, :-2]) / 2
    gradients = torch.stack([down.flatten(1), right.flatten(1)], dim=2)
    difference = -(red - blue)[:, 1:-1, 1:-1].flatten(1)[..., None]
    products = gradients.mT @ gradients + 1e-4 * torch.eye(2)
    return torch.linalg.solve(products, gradients.mT @ difference)[..., 0]


def test_a_network_that_sees_shifts_of_colour_is_told_by_them(tmp_path):
    found = measured(shift_of_red_against_blue, write(tmp_path, bars))
    assert r2_of(found, "aberration").r2.value > 0.7
    assert abs(r2_of(found, "position").r2.value) < 0.2, "as photographed, these images have no aberration"
    grey = measured(lambda x: mean_colour(x.mean(dim=1, keepdim=True)), tmp_path)
    assert abs(r2_of(grey, "aberration").r2.value) < 0.2


@pytest.mark.slow
def test_with_random_weights_by_the_command_s_function_and_as_json(tmp_path):
    torch.manual_seed(0)
    backbone = Backbone("resnet18", stem="small", kwargs={"channels": [4, 8, 12, 16]})
    folder = write(tmp_path / "images", lit_from_above)
    evaluation = evaluate(backbone, data_of(folder), shortcuts=True, seed=1)
    found = evaluation.shortcuts
    assert found is not None
    representations = ("pooled", *backbone.stages[:-1])
    assert [(row.weights, row.what, row.representation) for row in found.rows] == [
        (weights, what, name)
        for weights in ("given", "random")
        for what in ("position", "aberration")
        for name in representations
    ]
    rows = [row for row in found.rows if row.what == "position"]
    assert max(row.r2_down for row in rows) > 0.9, "a cue of brightness reaches random weights"
    for each in found.differences:
        given, random = (
            next(
                row for row in found.rows
                if (row.what, row.representation, row.weights) == (each.what, each.representation, weights)
            )
            for weights in ("given", "random")
        )  # fmt: skip
        assert each.r2.value == pytest.approx(given.r2.value - random.r2.value)
        assert each.r2.low <= each.r2.value <= each.r2.high
    assert len(found.differences) == len(found.rows) / 2
    console = Console(file=io.StringIO(), width=80)
    console.print(found.table())
    assert "…" not in console.file.getvalue(), "80 columns are enough"
    evaluation.save(tmp_path / "evaluation.json")
    written = json.loads((tmp_path / "evaluation.json").read_text())["shortcuts"]
    assert written["rows"][0]["r2"] == found.rows[0].r2._asdict()
    assert written["words"] == found.words
    assert "shortcuts" not in evaluate(backbone, data_of(folder), random_weights=False, stages=False).to_json()


def test_what_cannot_be_measured_is_refused_before_the_work(tmp_path):
    class Coarse(Backbone):
        def check_size(self, side):
            if side < 32:
                raise ValueError(f"images of {side} px are too small for it")

    backbone = Coarse("resnet18", stem="small", kwargs={"channels": [4, 4, 4, 4]})
    few = data_of(write(tmp_path / "few", noise, num=60))
    with pytest.raises(ValueError, match="72 patches are too few; give at least 50 training images"):
        evaluate(backbone, few, shortcuts=True)
    many = data_of(write(tmp_path / "many", noise))
    with pytest.raises(
        ValueError, match=r"patches of 10 px out of images of 32 px.*for it\); give a larger --image_size"
    ):
        evaluate(backbone, many, shortcuts=True)


def test_grey_images_are_measured_without_aberration_and_that_is_said(tmp_path):
    found = measured(mean_colour, write(tmp_path, lit_from_above), channels=1)
    assert [row.what for row in found.rows] == ["position"]
    assert "Grey images have no chromatic aberration: it was not measured." in found.words


@pytest.mark.parametrize(
    ("header", "side"),
    [
        (None, 38),
        ({"config": {"model": {"init_args": {"patch_size": 32}}}}, 32),
        ({"config": {"model": {"init_args": {"patch_size": 65}}}}, 38),
        ({"config": {"model": "odd"}}, 38),
    ],
)
def test_patches_have_the_size_of_the_task_s_where_it_has_one(header, side):
    assert patch_side(128, header) == side


MUCH, LITTLE, NONE = Interval(0.3, 0.2, 0.4), Interval(0.05, 0.02, 0.08), Interval(0.2, -0.1, 0.5)


def words_of(position, aberration):
    rows = [
        ShortcutRow(what, weights, "pooled", Interval(0.5, 0.4, 0.6), 0.5, 0.5, 0.2, 0.3, 0.5, 1.0)
        for what in ("position", "aberration")
        for weights in ("given", "random")
    ]
    differences = [("position", "layer1", MUCH), ("position", "pooled", position), ("aberration", "pooled", aberration)]
    return " ".join(shortcut_words(rows, [ShortcutDifference(*each) for each in differences]))


@pytest.mark.parametrize(
    ("position", "aberration", "expected"),
    [
        (MUCH, MUCH, "That fits the shortcut of chromatic aberration"),
        (MUCH, LITTLE, "What tells the place is not chromatic aberration"),
        (LITTLE, MUCH, "sees chromatic aberration, but tells no place"),
        (LITTLE, NONE, "No sign of a shortcut by place or colour"),
    ],
)
def test_words(position, aberration, expected):
    verdicts = {"That fits the shortcut", "What tells the place is", "but tells no place", "No sign of a shortcut"}
    words = words_of(position, aberration)
    assert expected in words
    assert sum(verdict in words for verdict in verdicts) == 1, "and no other one"
    assert ("model.colour" in words) == (aberration is MUCH)
    assert "the sky is above" in words


def test_words_without_random_weights_claim_nothing():
    rows = [ShortcutRow("position", "given", "pooled", Interval(0.9, 0.8, 1.0), 0.9, 0.9, 0.1, 0.3, 0.9, 1.0)]
    words = " ".join(shortcut_words(rows, []))
    assert "Random weights were not measured" in words
    assert "shortcut" not in words
