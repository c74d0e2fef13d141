"""DINO: centred and sharpened targets, the centre's move, its bounds, refusals."""

import math

import pytest
import torch
import torch.nn.functional as F

from pretext.dino import DINO
from ssl_toolkit.augment import Views
from ssl_toolkit.batch import Batch, Images
from ssl_toolkit.losses import entropy
from ssl_toolkit.modules import Backbone
from ssl_toolkit.optim import SGD
from ssl_toolkit.schedule import Constant, Progress, Scheduled
from ssl_toolkit.step import StepContext

NUM = 5


def make_task(**arguments):
    torch.manual_seed(0)
    backbone = Backbone("resnet10t", stem="small", kwargs={"channels": (4, 4, 8, 8), "stem_width": 4})
    views = {"global": Views(count=2, size=24), "local": Views(count=2, size=16, preset="small_crop", blur=0)}
    given = {"projector_widths": (16, 8), "num_prototypes": 6, "views": views, **arguments}
    task = DINO(backbone=backbone, optimizer=SGD(), schedule=Constant(), **given)
    with torch.no_grad():  # no longer the student's
        for each in task.teacher.parameters():
            each.add_(0.1 * torch.randn_like(each))
    return task


def make_batch():
    pixels = torch.randint(0, 256, (NUM, 3, 32, 32), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    return Batch(Images(pixels, torch.full((NUM, 2), 32)), torch.arange(NUM), torch.full((NUM,), -1), 0)


def similarities(networks, view):
    unit = F.normalize(networks.projector(networks.backbone(view)), dim=1)
    return unit @ F.normalize(networks.prototypes.weight, dim=1).T


def test_the_student_predicts_the_centred_and_sharpened_teacher():
    task, batch = make_task(temperature=0.2, teacher_temperature=0.07).eval(), make_batch()
    task.centre.copy_(torch.linspace(-0.5, 0.5, 6))
    views, losses = task.make_views(batch.images, task.keys(batch)), []
    for teacher in (0, 1):
        targets = ((similarities(task.teacher, views[teacher]) - task.centre) / 0.07).softmax(dim=1)
        for student in range(4):
            if student != teacher:
                predicted = (similarities(task, views[student]) / 0.2).log_softmax(dim=1)
                losses.append(-(targets * predicted).sum(dim=1).mean())
    assert len(losses) == 6
    output = task.compute(batch)
    torch.testing.assert_close(output.loss, torch.stack(losses).mean())
    output.loss.backward()
    assert all(each.grad is None for each in task.teacher.parameters())
    assert all(each.grad is not None for each in task.prototypes.parameters())


def test_the_teacher_sees_large_views_alone():
    task, seen = make_task(), []
    for network in (task.backbone, task.teacher.network("backbone")):
        network.register_forward_pre_hook(lambda module, inputs: seen.append(tuple(inputs[0].shape)))
    task.compute(make_batch())
    assert seen == [(2 * NUM, 3, 24, 24), (2 * NUM, 3, 16, 16), (2 * NUM, 3, 24, 24)]
    assert task.exported_backbone is task.teacher.network("backbone")


def test_the_centre_follows_the_teacher_s_mean_and_the_teacher_the_student():
    task, batch = make_task(centre_momentum=0.8, momentum=0.5).eval(), make_batch()
    task.centre.fill_(0.3)
    views = task.make_views(batch.images, task.keys(batch))
    mean = torch.cat([similarities(task.teacher, view) for view in views[:2]]).mean(dim=0)
    old = task.teacher.network("prototypes").weight.clone()
    task.after_optimizer_step(Progress(), task.compute(batch).kept)
    torch.testing.assert_close(task.centre, 0.8 * 0.3 + 0.2 * mean)
    torch.testing.assert_close(task.teacher.network("prototypes").weight, (old + task.prototypes.weight) / 2)


def test_the_teacher_s_temperature_may_rise():
    rising = Scheduled(0.07, 0.04, Constant(warmup_steps=50))
    task, batch = make_task(teacher_temperature=rising).eval(), make_batch()
    views = task.make_views(batch.images, task.keys(batch))
    for step in (0, 20, 70):
        progress = Progress(step, 100, 10.0)
        targets = [(similarities(task.teacher, view) / rising.at(progress)).softmax(dim=1) for view in views[:2]]
        found = task.loss(views, StepContext(progress=progress)).metrics["teacher_entropy"]
        torch.testing.assert_close(found, entropy(torch.cat(targets)))


def test_bounds_are_those_of_chance_and_of_a_teacher_that_stands_still():
    task = make_task(projector_widths=(16, 256), num_prototypes=2000)
    assert task.initial_loss(4) == math.log(2000)
    directions = torch.randn(50, 256, generator=torch.Generator().manual_seed(0))
    answers = (task.prototypes(directions) / 0.04).softmax(dim=1)
    assert entropy(answers).item() == pytest.approx(task.least_loss(4), abs=0.05)
    assert make_task().least_loss(4) == 0


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"temperature": 0.0}, r"^model.temperature is 0.0, expected above 0$"),
        ({"teacher_temperature": Scheduled(0.04, 0.0)}, r"^model.teacher_temperature is from 0.04 to 0.0, expected"),
        ({"centre_momentum": 1.1}, r"^model.centre_momentum is 1.1, expected at least 0 and at most 1$"),
        ({"num_prototypes": 1}, r"^model.num_prototypes is 1, expected at least 2$"),
        ({"frozen_until": 2.0}, r"^model.frozen_until is 2.0, expected at least 0 and at most 1$"),
    ],
)
def test_wrong_numbers_are_refused(arguments, expected):
    with pytest.raises(ValueError, match=expected):
        make_task(**arguments)
