"""Patch offset: the places, the pairs, the loss and what is refused."""

import math

import pytest
import torch

from pretext.patch_offset import PatchOffset
from ssl_toolkit.augment import RandomView
from ssl_toolkit.batch import Images
from ssl_toolkit.modules import Backbone
from ssl_toolkit.optim import AdamW
from ssl_toolkit.random import sample_keys
from ssl_toolkit.regularization import MixUp
from ssl_toolkit.schedule import Constant
from ssl_toolkit.step import StepContext

SIDE, PATCH = 40, 12


def make_task(stem="small", **arguments):
    torch.manual_seed(0)
    backbone = Backbone("resnet10t", stem=stem, kwargs={"channels": (8, 8, 8, 8)})
    view = RandomView(size=SIDE, scale=(1, 1), ratio=(1, 1), hflip=0, preset="crop_and_flip")
    arguments = {"view": view, "patch_size": PATCH, "colour": "none", "num_patches": 4, **arguments}
    return PatchOffset(backbone=backbone, optimizer=AdamW(), schedule=Constant(), hidden_width=16, **arguments)


def make_images(num):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (num, 3, SIDE, SIDE), dtype=torch.uint8, generator=generator)
    return Images(pixels, torch.full((num, 2), SIDE))


def views_of(task, num):
    return task.make_views(make_images(num), sample_keys(0, 0, torch.arange(num)))


def test_patches_are_cut_where_their_corners_say():
    views = views_of(make_task(), 5)
    assert views.patches.shape == (5, 4, 3, PATCH, PATCH)
    for image, patches, corners in zip(make_images(5).pixels, views.patches, views.corners.tolist(), strict=True):
        for patch, (top, left) in zip(patches, corners, strict=True):
            expected = image[:, top : top + PATCH, left : left + PATCH] / 255
            torch.testing.assert_close(patch, expected, atol=1e-5, rtol=0)


def test_each_place_is_as_likely_and_drawn_for_each_patch_from_the_sample_s_key():
    corners = views_of(make_task(), 500).corners
    for axis in (0, 1):
        counts = corners[..., axis].flatten().bincount(minlength=SIDE - PATCH + 1)
        assert len(counts) == SIDE - PATCH + 1
        expected = 2000 / len(counts)
        assert (counts - expected).abs().max() < 5 * math.sqrt(expected)
    flat = corners.flatten(1).double()
    correlation = torch.corrcoef(flat.T) - torch.eye(8)
    assert correlation.abs().max() < 5 / math.sqrt(500)
    some = make_task().make_views(
        Images(*(each[7:9] for each in make_images(9))), sample_keys(0, 0, torch.arange(7, 9))
    )
    assert torch.equal(some.corners, corners[7:9])


@pytest.mark.parametrize("least_distance", [0.0, 1.0, 1.5])
def test_the_loss_is_the_squared_error_over_pairs_that_are_far_enough_apart(least_distance):
    task = make_task(least_distance=least_distance).eval()
    views = views_of(task, 6)
    output = task.loss(views, StepContext())
    errors, num = [], 0
    for patches, corners in zip(views.patches, views.corners.tolist(), strict=True):
        features = [task.backbone(patch[None])[0] for patch in patches]
        for a, (top, left) in enumerate(corners):
            for b, (lower, further) in enumerate(corners):
                num += a != b
                if a != b and max(abs(lower - top), abs(further - left)) >= least_distance * PATCH:
                    down, right = task.regressor(torch.cat([features[a], features[b]])[None])[0].tolist()
                    errors.append(((down - (lower - top) / PATCH) ** 2 + (right - (further - left) / PATCH) ** 2) / 2)
    assert (len(errors) == num) == (least_distance == 0)
    loss = sum(errors) / num / task.fraction
    assert output.loss.item() == pytest.approx(loss, rel=1e-4)
    explained = 1 - loss / task.initial_loss(6)
    assert output.metrics["variance_explained"].item() == pytest.approx(explained, abs=1e-4)
    assert output.features.shape == (24, 8)


def test_who_always_says_nothing_has_the_loss_of_chance():
    task = make_task(num_patches=9)
    torch.nn.init.zeros_(task.regressor[-1].weight)
    torch.nn.init.zeros_(task.regressor[-1].bias)
    task.backbone.forward = lambda patches: torch.zeros(len(patches), 8)
    num = 800
    views = views_of(task, num)
    output = task.loss(views, StepContext())
    # the places of 800 images: the loss of one scatters by about a third
    assert output.loss.item() == pytest.approx(task.initial_loss(num), rel=5 * 0.33 / math.sqrt(num))
    assert abs(output.metrics["variance_explained"].item()) < 0.06
    for bias in (0.5, -0.5):
        torch.nn.init.constant_(task.regressor[-1].bias, bias)
        # any other constant is worse by its square
        worse = task.loss(views, StepContext()).loss.item() - output.loss.item()
        assert worse == pytest.approx(0.25, abs=0.02)


@pytest.mark.parametrize(("num_patches", "least_distance"), [(2, 1.25), (4, 0.0), (9, 2.0)])
def test_the_margin_of_the_first_loss_allows_for_what_32_images_scatter(num_patches, least_distance):
    task = make_task(num_patches=num_patches, least_distance=least_distance)
    torch.nn.init.zeros_(task.regressor[-1].weight)
    torch.nn.init.zeros_(task.regressor[-1].bias)
    task.backbone.forward = lambda patches: torch.zeros(len(patches), 8)
    views, losses = views_of(task, 32 * 40), []
    for start in range(0, 32 * 40, 32):
        few = views._replace(patches=views.patches[start : start + 32], corners=views.corners[start : start + 32])
        losses.append(task.loss(few, StepContext()).loss.detach())
    assert 4.5 * float(torch.stack(losses).std()) < task.initial_loss_margin[0]


def test_least_distance_is_in_whole_pixels():
    assert make_task(least_distance=1.5).least == 18
    view = RandomView(size=48, preset="crop_and_flip")
    task = make_task(least_distance=1.1, patch_size=20, view=view)
    assert task.least == 22, "1.1 * 20 is above 22 in floating point"
    assert make_task(least_distance=1.01).least == 13


def test_it_shares_the_remedies_of_patches():
    plain, grey = (views_of(make_task(colour=colour), 3).patches for colour in ("none", "grey"))
    luma = (plain * torch.tensor([0.2989, 0.587, 0.114])[:, None, None]).sum(dim=2, keepdim=True)
    torch.testing.assert_close(grey, luma.expand_as(grey), atol=1e-6, rtol=0)
    assert not torch.equal(views_of(make_task(downsampling=1.0), 3).patches, plain)
    assert not torch.equal(views_of(make_task(rescaling="rms"), 3).patches, plain)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_patches": 1}, r"^model\.num_patches is 1, expected at least 2$"),
        ({"least_distance": -0.5}, r"^model\.least_distance is -0\.5, expected a number of patch sides from 0$"),
        ({"least_distance": 2.5}, r"leaves no two places in a view of 40 px; expected a view\.size of at least 42$"),
        ({"patch_size": 40, "least_distance": 0}, r"leaves no two places in a view of 40 px; .* of at least 41$"),
        ({"patch_size": 0}, r"leaves no two places"),
        ({"stem": "standard"}, r"a single pixel is left before its last stage"),
        ({"view": RandomView(size=SIDE, rotation=10.0)}, r"^model\.view\.rotation leaves places filled with grey"),
    ],
)
def test_what_cannot_work_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_task(**arguments)


def test_the_largest_distance_that_fits_is_taken():
    task = make_task(least_distance=28 / 12)
    assert task.least == task.room == 28
    assert 0 < task.fraction < 0.01


def test_mixing_is_refused():
    """An offset of two images that lie differently is of neither."""
    with pytest.raises(ValueError, match="MixUp needs a task with soft targets"):
        make_task(regularizers=[MixUp()]).check()
