"""Patch position: the grid, the pairs, the views and the balanced loss."""

import math

import pytest
import torch

from pretext.patch_position import DIRECTIONS, PatchPosition, neighbour_pairs
from ssl_toolkit.augment import RandomView
from ssl_toolkit.batch import Images
from ssl_toolkit.modules.backbone import Backbone
from ssl_toolkit.optim import AdamW
from ssl_toolkit.random import sample_keys
from ssl_toolkit.schedule import Constant
from ssl_toolkit.step import StepContext


def plain_view(size):
    return RandomView(size=size, scale=(1, 1), ratio=(1, 1), hflip=0, jitter_prob=0, grayscale=0, blur=0)


def make_task(size=48, stem="small", **arguments):
    torch.manual_seed(0)
    backbone = Backbone("resnet10t", stem=stem, kwargs={"channels": (8, 8, 8, 8)})
    arguments = {"view": plain_view(size), "patch_size": 12, "jitter": 0, "colour": "none", **arguments}
    return PatchPosition(backbone=backbone, optimizer=AdamW(), schedule=Constant(), hidden_width=16, **arguments)


def make_images(num=3, size=48, seed=0):
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (num, 3, size, size), dtype=torch.uint8, generator=generator)
    return Images(pixels, torch.full((num, 2), size))


def test_the_pairs_are_all_neighbours_in_both_orders():
    pairs = neighbour_pairs().tolist()
    naive = [
        (a, b) for a in range(9) for b in range(9) if a != b and abs(a // 3 - b // 3) <= 1 and abs(a % 3 - b % 3) <= 1
    ]
    assert sorted((a, b) for a, b, _ in pairs) == sorted(naive)
    assert len(pairs) == 40
    for a, b, direction in pairs:
        assert (b // 3 - a // 3, b % 3 - a % 3) == DIRECTIONS[direction]


def test_without_jitter_patches_are_the_middles_of_the_cells():
    images = make_images()
    patches = make_task().make_views(images, sample_keys(0, 0, torch.arange(3)))
    assert patches.shape == (3, 9, 3, 12, 12)
    for place in range(9):
        top, left = place // 3 * 16 + 2, place % 3 * 16 + 2
        expected = images.pixels[:, :, top : top + 12, left : left + 12] / 255
        torch.testing.assert_close(patches[:, place], expected, atol=1e-5, rtol=0)


def test_jitter_stays_within_the_cells_and_differs_between_patches_and_equal_images():
    pixels = torch.arange(48 * 48).reshape(1, 1, 48, 48) % 251
    images = Images(pixels.to(torch.uint8).expand(64, 3, 48, 48).contiguous(), torch.full((64, 2), 48))
    patches = make_task(jitter=2).make_views(images, sample_keys(0, 0, torch.arange(64)))
    seen = [set() for _ in range(9)]
    values = images.pixels[0, 0].float() / 255
    for sample in range(64):
        for place in range(9):
            row, column = place // 3 * 16, place % 3 * 16
            shifts = [
                (down, right)
                for down in range(5)
                for right in range(5)
                if torch.allclose(
                    patches[sample, place, 0],
                    values[row + down : row + down + 12, column + right : column + right + 12],
                    atol=1e-5,
                )
            ]
            assert len(shifts) == 1
            seen[place].add(shifts[0])
    assert all(len(shifts) > 15 for shifts in seen)


def test_colour_dropping_leaves_one_channel_of_each_patch():
    patches = make_task(colour="dropping").make_views(make_images(), sample_keys(0, 0, torch.arange(3)))
    spread = patches.std(dim=(-1, -2))
    assert ((spread > 0.1).sum(dim=-1) == 1).all()


def test_colour_dropping_draws_the_channel_of_each_patch():
    """A channel that all patches of an image share would be one more thing that tells images apart."""
    patches = make_task(colour="dropping").make_views(make_images(200), sample_keys(0, 0, torch.arange(200)))
    kept = patches.std(dim=(-1, -2)).argmax(dim=-1)
    for place in range(1, 9):
        same = (kept[:, place] == kept[:, 0]).float().mean().item()
        # of 200 images a third, within five standard deviations
        assert abs(same - 1 / 3) < 5 * (2 / 9 / 200) ** 0.5


def test_the_centre_s_pairs_are_those_with_its_eight_neighbours_in_reading_order():
    task = make_task(pairs="centre")
    assert task.compared.tolist() == [[4, place, each] for each, place in enumerate([0, 1, 2, 3, 5, 6, 7, 8])]
    assert task.class_weights.tolist() == [1.0] * 8
    assert torch.equal(make_task().compared, neighbour_pairs())


@pytest.mark.parametrize("pairs", ["all", "centre"])
def test_a_mirrored_image_has_the_answers_of_what_is_seen(pairs):
    """The image is mirrored before it is cut: the patch at a place shows what is there in the mirrored image."""
    images, keys = make_images(), sample_keys(0, 0, torch.arange(3))
    mirrored = Images(images.pixels.flip(-1), images.sizes)
    view = RandomView(size=48, scale=(1, 1), ratio=(1, 1), hflip=1, preset="crop_and_flip")
    patches = make_task(view=view, pairs=pairs).make_views(images, keys)
    torch.testing.assert_close(patches, make_task(pairs=pairs).make_views(mirrored, keys), atol=1e-5, rtol=0)
    # so of two patches the class's step leads from the first to the second in the mirrored image
    for first, second, direction in make_task(pairs=pairs).compared.tolist():
        down, right = DIRECTIONS[direction]
        top, left = first // 3 * 16 + 2, first % 3 * 16 + 2
        for place, row, column in ((first, top, left), (second, top + 16 * down, left + 16 * right)):
            expected = mirrored.pixels[:, :, row : row + 12, column : column + 12] / 255
            torch.testing.assert_close(patches[:, place], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("pairs", ["all", "centre"])
def test_the_loss_weighs_the_eight_positions_equally(pairs):
    task = make_task(pairs=pairs).eval()
    torch.nn.init.normal_(task.classifier[0].weight, std=100)  # so large that not all answers are one
    views = task.make_views(make_images(4), sample_keys(0, 0, torch.arange(4)))
    output = task.loss(views, StepContext())

    # the same from its definition: mean over classes of the mean over a class's pairs
    features = task.backbone(views.flatten(0, 1)).detach().unflatten(0, (4, 9))
    losses, hits = [[] for _ in DIRECTIONS], [[] for _ in DIRECTIONS]
    for image in range(4):
        for a, b, direction in neighbour_pairs().tolist():
            if pairs == "centre" and a != 4:
                continue
            logits = task.classifier(torch.cat([features[image, a], features[image, b]])[None])[0].detach().double()
            losses[direction].append(float(torch.logsumexp(logits, 0) - logits[direction]))
            hits[direction].append(float(logits.argmax() == direction))
    mean = [sum(of_class) / len(of_class) for of_class in losses]
    assert output.loss.item() == pytest.approx(sum(mean) / 8, rel=1e-4)
    fractions = [sum(of_class) / len(of_class) for of_class in hits]
    assert sum(fractions) not in (0, 1), "other answers than one class for all"
    assert output.metrics["position_top1"].item() == pytest.approx(sum(fractions) / 8, rel=1e-4)


def test_a_constant_answer_has_the_loss_of_chance():
    task = make_task()
    torch.nn.init.zeros_(task.classifier[-1].weight)
    torch.nn.init.zeros_(task.classifier[-1].bias)
    output = task.loss(task.make_views(make_images(4), sample_keys(0, 0, torch.arange(4))), StepContext())
    assert output.loss.item() == pytest.approx(math.log(8), rel=1e-5)
    assert output.metrics["position_top1"].item() == pytest.approx(1 / 8, rel=1e-5)


def test_unknown_pairs_are_refused():
    with pytest.raises(ValueError, match=r"^model\.pairs is 'some', expected all or centre$"):
        make_task(pairs="some")


def test_patches_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="does not fit a cell of 16 px"):
        make_task(jitter=3)


def test_patches_that_leave_one_pixel_are_refused():
    with pytest.raises(ValueError, match="a single pixel is left"):
        make_task(stem="standard")
