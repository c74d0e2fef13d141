"""Fast-MoCo: its patches and combinations against naive loops, its bounds, and what it refuses."""

import pytest
import torch

from pretext.fast_moco import FastMoCo, combine, cut
from ssl_toolkit.augment import RandomView, Views
from ssl_toolkit.batch import Batch, Images
from ssl_toolkit.losses import info_nce
from ssl_toolkit.modules import Backbone
from ssl_toolkit.optim import SGD
from ssl_toolkit.schedule import Constant

NUM = 5


def make_task(**arguments):
    torch.manual_seed(0)
    backbone = Backbone("resnet10t", stem="small", kwargs={"channels": (4, 4, 8, 8), "stem_width": 4})
    given = {"projector_widths": (16, 8), "predictor_width": 16, "view": RandomView(24), **arguments}
    return FastMoCo(backbone=backbone, optimizer=SGD(), schedule=Constant(), **given)


def make_batch():
    pixels = torch.randint(0, 256, (NUM, 3, 32, 32), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    return Batch(Images(pixels, torch.full((NUM, 2), 32)), torch.arange(NUM), torch.full((NUM,), -1), 0)


@pytest.mark.parametrize(("side", "grid"), [(6, 2), (7, 2), (8, 3), (9, 3)])
def test_patches_are_cut_in_reading_order(side, grid):
    images = torch.arange(2 * 3 * side * side, dtype=torch.float32).view(2, 3, side, side)
    small, expected = side // grid, []
    for image in images:
        for row in range(grid):
            for column in range(grid):
                top, left = row * small, column * small
                expected.append(image[:, top : top + small, left : left + small])
    assert torch.equal(cut(images, grid), torch.stack(expected))


def test_patches_put_together_are_the_image():
    images = torch.rand(2, 3, 8, 8)
    rows = cut(images, 2).unflatten(0, (2, 2, 2))
    assert torch.equal(torch.cat([torch.cat(list(row.unbind(1)), dim=-1) for row in rows.unbind(1)], dim=-2), images)


def test_combinations_are_means():
    parts = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    task = make_task()
    assert task.combinations == [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    means = combine(parts, task.combinations)
    for number, (one, other) in enumerate(task.combinations):
        torch.testing.assert_close(means[:, number], (parts[:, one] + parts[:, other]) / 2)
    # each part is in as many of them
    torch.testing.assert_close(means.mean(dim=1), parts.mean(dim=1))


def test_the_loss_is_the_mean_over_combinations_and_directions():
    task, batch = make_task(temperature=0.3).eval(), make_batch()
    views = task.make_views(batch.images, task.keys(batch))
    found = []
    for student, teacher in ((0, 1), (1, 0)):
        keys, view = task.teacher(views[teacher]), views[student]
        patches = [view[:, :, :12, :12], view[:, :, :12, 12:], view[:, :, 12:, :12], view[:, :, 12:, 12:]]
        features = [task.backbone(patch) for patch in patches]
        for one in range(4):
            for other in range(one):
                queries = task.predictor(task.projector((features[one] + features[other]) / 2))
                found.append(info_nce(queries, keys, 0.3)[0])
    assert len(found) == 12
    output = task.compute(batch)
    torch.testing.assert_close(output.loss, torch.stack(found).mean())
    output.loss.backward()
    assert all(each.grad is None for each in task.teacher.parameters())
    assert all(each.grad is not None for each in task.predictor.parameters())


def test_the_student_sees_patches_and_the_teacher_whole_views():
    views = {"large": Views(count=2, size=32), "small": Views(count=1, size=16, blur=0)}
    task, seen = make_task(view=None, views=views), []
    for backbone in (task.backbone, task.teacher.network("backbone")):
        backbone.register_forward_pre_hook(lambda module, inputs: seen.append(tuple(inputs[0].shape)))
    output = task.compute(make_batch())
    assert seen == [(8 * NUM, 3, 16, 16), (4 * NUM, 3, 8, 8), (2 * NUM, 3, 32, 32)]
    assert output.features.shape == (12 * NUM, 8)


def test_all_patches_together_are_one_prediction():
    task = make_task(combined=4)
    assert task.combinations == [(0, 1, 2, 3)]
    assert task.compute(make_batch()).loss.isfinite()


def test_bounds_are_those_of_chance_and_of_a_simplex():
    task = make_task(temperature=0.5)
    same = torch.ones(9, 8)
    assert info_nce(same, same, 0.5)[0].item() == pytest.approx(task.initial_loss(9))
    corners = torch.eye(8, dtype=torch.float64) - 1 / 8
    assert info_nce(corners, corners, 0.5)[0].item() == pytest.approx(task.least_loss(8))
    assert task.least_loss(1) == 0


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"grid": 1}, r"model.grid is 1, expected at least 2 patches along each side of a view"),
        ({"combined": 0}, r"model.combined is 0, expected 1 to 4, the patches of a view"),
        ({"combined": 5}, r"model.combined is 5, expected 1 to 4"),
        ({"temperature": 0.0}, r"model.temperature is 0.0, expected above 0"),
    ],
)
def test_wrong_numbers_are_refused(arguments, expected):
    with pytest.raises(ValueError, match=expected):
        make_task(**arguments)


@pytest.mark.slow
def test_patches_that_are_too_small_are_refused_before_the_run():
    torch.manual_seed(0)
    backbone = Backbone("vgg11")
    task = FastMoCo(backbone=backbone, optimizer=SGD(), schedule=Constant(), view=RandomView(40))
    with pytest.raises(ValueError, match=r"^images of 20 px are too small for vgg11, which takes 32 px or more"):
        task.check_data(None)
