"""W-MSE: its division of the batch, its pairs of views, and what it refuses."""

import itertools

import pytest
import torch

from pretext.w_mse import WMSE
from ssl_toolkit.augment import RandomView, Views
from ssl_toolkit.batch import Batch, Images
from ssl_toolkit.losses import symmetric_cosine, whiten
from ssl_toolkit.modules import Backbone
from ssl_toolkit.optim import SGD
from ssl_toolkit.random import fold_in
from ssl_toolkit.schedule import Constant

NUM = 11


def make_task(**arguments):
    torch.manual_seed(0)
    backbone = Backbone("resnet10t", stem="small", kwargs={"channels": (4, 4, 8, 8), "stem_width": 4})
    given = {"projector_widths": (16, 3), "part": 5, "view": RandomView(24), **arguments}
    return WMSE(backbone=backbone, optimizer=SGD(), schedule=Constant(), **given).double().eval()


def make_batch(order=range(NUM)):
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (NUM, 3, 32, 32), generator=generator, dtype=torch.uint8)
    order = torch.tensor(list(order))
    return Batch(Images(pixels[order], torch.full((NUM, 2), 32)), order, torch.full((NUM,), -1), 0)


def loss_of(task, batch):
    make_views = task.make_views
    task.make_views = lambda *arguments: tuple(view.double() for view in make_views(*arguments))
    return task.compute(batch).loss


@pytest.mark.parametrize("repeats", [1, 2])
def test_each_part_is_whitened_by_itself_and_all_pairs_of_views_agree(repeats):
    views = {"view": Views(count=3, size=24)}
    task, batch, losses = make_task(view=None, views=views, repeats=repeats), make_batch(), []
    keys = task.keys(batch)
    embedded = [task.projector(task.backbone(view.double())) for view in task.make_views(batch.images, keys)]
    for repeat in range(repeats):
        order = sorted(range(NUM), key=fold_in(keys, f"part {repeat}").tolist().__getitem__)
        # eleven images in parts of five or more
        first, second = order[:6], order[6:]
        for one, other in itertools.combinations(embedded, 2):
            of_parts = [
                symmetric_cosine(whiten(one[rows], 1e-4), whiten(other[rows], 1e-4)) for rows in (first, second)
            ]
            losses.append((6 * of_parts[0] + 5 * of_parts[1]) / NUM)
    assert len(losses) == 3 * repeats
    torch.testing.assert_close(loss_of(task, batch), torch.stack(losses).mean())


def test_the_division_follows_the_images_and_not_their_places():
    batches = make_batch(), make_batch(reversed(range(NUM)))
    losses = [loss_of(make_task(), batch) for batch in batches]
    torch.testing.assert_close(*losses)
    # in another epoch it is another one
    later = batches[0]._replace(epoch=1)
    task, batch = make_task(), batches[0]
    orders = [fold_in(task.keys(each), "part 0").argsort().tolist() for each in (batch, later)]
    assert orders[0] != orders[1]


def test_one_part_holds_a_batch_that_is_not_twice_as_large():
    whole, one_part = (loss_of(make_task(part=part), make_batch()) for part in (NUM, 6))
    torch.testing.assert_close(one_part, whole)


def test_a_batch_of_fewer_images_than_dimensions_is_refused():
    task = make_task()
    task.check_batch(4)
    with pytest.raises(ValueError, match=r"^W-MSE whitens 3 dimensions over a batch of 3 images, which are too few: "):
        task.check_batch(3)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"part": 3}, r"^model.part is 3, expected more than the embedding's width \(.* ends with 3\), twice as many"),
        ({"repeats": 0}, r"^model.repeats is 0, expected at least 1$"),
        ({"eps": 0.0}, r"^model.eps is 0.0, expected above 0 and below 1$"),
        ({"eps": 1.0}, r"^model.eps is 1.0, expected above 0 and below 1$"),
    ],
)
def test_wrong_numbers_are_refused(arguments, expected):
    with pytest.raises(ValueError, match=expected):
        make_task(**arguments)
