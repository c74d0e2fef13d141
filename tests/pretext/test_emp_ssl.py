"""EMP-SSL: its crops, its bounds, the size at which it is evaluated, and what it refuses."""

import math

import pytest
import torch

from pretext.emp_ssl import EMPSSL
from ssl_toolkit.augment import Views
from ssl_toolkit.batch import Batch, Images
from ssl_toolkit.callbacks import OnlineEvaluation
from ssl_toolkit.data import ImageData
from ssl_toolkit.losses import emp_ssl
from ssl_toolkit.modules.backbone import Backbone
from ssl_toolkit.optim import SGD
from ssl_toolkit.schedule import Constant


def make_task(width=6, count=4, **arguments):
    torch.manual_seed(0)
    backbone = Backbone("resnet10t", stem="small", kwargs={"channels": (4, 4, 8, 8), "stem_width": 4})
    views = {"crop": Views(count=count, size=16, scale=(0.25, 0.25), ratio=(1, 1), preset="crop_and_flip", hflip=0)}
    common = {"optimizer": SGD(lr=0.01), "schedule": Constant(), "views": views}
    return EMPSSL(backbone=backbone, projector_widths=(8, width), **common, **arguments)


def make_batch(side=32, num=5):
    pixels = torch.randint(0, 256, (num, 3, side, side), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return Batch(Images(pixels, torch.full((num, 2), side)), torch.arange(num), torch.full((num,), -1), 0)


def test_crops_of_a_quarter_of_the_area_keep_their_pixels():
    """They are cut out of the image as they are: no pixel of theirs is a mean of the image's."""
    task, batch = make_task(), make_batch()
    for crop in task.make_views(batch.images, task.keys(batch)):
        windows = batch.images.pixels[0].float().div(255).unfold(1, 16, 1).unfold(2, 16, 1)
        distance = (windows - crop[0][:, None, None]).abs().amax(dim=(0, 3, 4))
        assert distance.min() < 1e-6


def test_all_crops_pass_at_once_and_the_loss_is_that_of_their_embeddings():
    task, batch, seen = make_task(invariance=3.0, distortion=0.5), make_batch(), []
    task.backbone.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    output = task.compute(batch)
    assert [tuple(each.shape) for each in seen] == [(20, 3, 16, 16)]
    embedded = task.projector(task.backbone(seen[0])).unflatten(0, (4, 5))
    torch.testing.assert_close(output.loss, emp_ssl(embedded, 3.0, 0.5)[0])
    assert set(output.metrics) == {"coding_rate", "agreement"}


def test_the_backbone_is_evaluated_on_whole_images_and_not_on_the_size_of_a_crop():
    task = make_task()
    assert max(task.sizes) == 16
    data = ImageData(source="procedural", max_images=4, image_size=40, batch_size=2)
    assert OnlineEvaluation()._view(task, data).size == 40


def test_initial_loss_is_that_of_directions_at_random_and_least_loss_is_reached():
    task = make_task(width=400, count=16)
    at_random = torch.randn(16, 3, 400, generator=torch.Generator().manual_seed(0))
    assert emp_ssl(at_random)[0].item() == pytest.approx(task.initial_loss(3), rel=0.03)
    task = make_task(width=5)
    for num in (1, 3, 5):
        alike = torch.eye(5)[:num].expand(4, num, 5)
        assert emp_ssl(alike)[0].item() == pytest.approx(task.least_loss(num), abs=1e-4)
    below, above = task.initial_loss_margin
    alike, collapsed = torch.eye(5).expand(4, 5, 5), torch.ones(4, 5, 5)
    assert emp_ssl(alike)[0].item() == pytest.approx(task.initial_loss(5) - below, abs=1e-3)
    assert emp_ssl(collapsed)[0] < task.initial_loss(5) + above


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"invariance": -1.0}, r"model.invariance is -1.0, expected a weight of at least 0"),
        ({"invariance": math.nan}, r"model.invariance is nan"),
        ({"distortion": 0.0}, r"model.distortion is 0.0, expected a number above 0"),
        ({"distortion": math.inf}, r"model.distortion is inf"),
    ],
)
def test_wrong_numbers_are_refused(arguments, expected):
    with pytest.raises(ValueError, match=expected):
        make_task(**arguments)
