"""SwAV: its pairs, its queue, its bounds, and what it refuses."""

import math

import pytest
import torch
import torch.nn.functional as F

from pretext.swav import SwAV
from ssl_toolkit.augment import Views
from ssl_toolkit.batch import Batch, Images
from ssl_toolkit.losses import sinkhorn, soft_assignment_loss
from ssl_toolkit.modules import Backbone, FeatureQueue
from ssl_toolkit.optim import SGD
from ssl_toolkit.schedule import Constant, Progress
from ssl_toolkit.step import StepContext

NUM = 5


def make_task(**arguments):
    torch.manual_seed(0)
    backbone = Backbone("resnet10t", stem="small", kwargs={"channels": (4, 4, 8, 8), "stem_width": 4})
    views = {"global": Views(count=2, size=24), "local": Views(count=2, size=16, preset="small_crop", blur=0)}
    given = {"projector_widths": (16, 8), "num_prototypes": 6, "queue_size": 12, "views": views, **arguments}
    return SwAV(backbone=backbone, optimizer=SGD(), schedule=Constant(), **given)


def make_batch():
    pixels = torch.randint(0, 256, (NUM, 3, 32, 32), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    return Batch(Images(pixels, torch.full((NUM, 2), 32)), torch.arange(NUM), torch.full((NUM,), -1), 0)


@pytest.mark.parametrize(
    ("step", "filled", "queue_takes_part"),
    [(0, 12, False), (29, 12, False), (30, 12, True), (100, 12, True), (100, 11, False), (100, 0, False)],
)
def test_each_large_view_is_predicted_from_every_other_view(step, filled, queue_takes_part):
    task, batch = make_task(queue_after=0.3, temperature=0.2, epsilon=0.1).eval(), make_batch()
    task.queued.fill_(filled)
    views = task.make_views(batch.images, task.keys(batch))
    unit = [F.normalize(task.projector(task.backbone(view)), dim=1) for view in views]
    directions, losses = F.normalize(task.prototypes.weight, dim=1), []
    for target in (0, 1):
        known = torch.cat([unit[target], task.queue.features]) if queue_takes_part else unit[target]
        assigned = sinkhorn(known @ directions.T, 0.1)[:NUM]
        for other in range(4):
            if other != target:
                predicted = (unit[other] @ directions.T / 0.2).log_softmax(dim=1)
                losses.append(-(assigned * predicted).sum(dim=1).mean())
    assert len(losses) == 6
    output = task.loss(views, StepContext(progress=Progress(step, 100, 10.0)))
    torch.testing.assert_close(output.loss, torch.stack(losses).mean())


def test_after_a_step_the_queue_holds_the_large_views():
    task = make_task()
    output = task.compute(make_batch())
    assert output.kept["keys"].shape == (NUM, 2, 8)
    before = task.queue.features.clone()
    task.after_optimizer_step(Progress(), output.kept)
    expected = F.normalize(output.kept["keys"].detach().flatten(0, 1), dim=1)
    assert torch.equal(task.queue.features, torch.cat([expected, before[10:]]))


def test_the_queue_is_full_when_the_last_random_vector_is_gone():
    task = make_task()
    random, steps = set(map(tuple, task.queue.features.tolist())), 0
    while random & set(map(tuple, task.queue.features.tolist())):
        assert task.queued < 12
        task.after_optimizer_step(Progress(), {"keys": torch.randn(2, 2, 8)})
        steps += 1
    assert (steps, task.queued) == (3, 12)
    task.after_optimizer_step(Progress(), {"keys": torch.randn(2, 2, 8)})
    assert task.queued == 12


def test_without_a_queue_there_is_none():
    task = make_task(queue_size=0, queue_after=0.0)
    assert not [each for each in task.modules() if isinstance(each, FeatureQueue)]
    assert make_task().traits - task.traits == {"queue"}
    output = task.compute(make_batch())
    assert output.kept == {}
    task.after_optimizer_step(Progress(), output.kept)


def test_bounds_are_those_of_chance_and_of_prototypes_that_are_shared():
    task = make_task(num_prototypes=8)
    # no prototype is nearer than another
    even = torch.zeros(4, 8)
    assert soft_assignment_loss(even, sinkhorn(even, 0.05)).item() == pytest.approx(task.initial_loss(4))
    # four images have two prototypes each
    scores = 2 * torch.eye(4).repeat_interleave(2, dim=1) - 1
    assert soft_assignment_loss(scores / 0.1, sinkhorn(scores, 0.05)).item() == pytest.approx(math.log(2), abs=1e-6)
    assert task.least_loss(4) == math.log(2)
    assert task.least_loss(16) == 0
    # a queue that is not full takes no part
    assert make_task(num_prototypes=8, queue_after=0.0).least_loss(4) == math.log(2)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"temperature": 0.0}, r"^model.temperature is 0.0, expected above 0$"),
        ({"epsilon": 0.0}, r"^model.epsilon is 0.0, expected above 0$"),
        ({"num_prototypes": 1}, r"^model.num_prototypes is 1, expected at least 2$"),
        ({"queue_size": -1}, r"^model.queue_size is -1, expected at least 0$"),
        ({"queue_after": 1.5}, r"^model.queue_after is 1.5, expected at least 0 and at most 1$"),
        ({"frozen_until": -0.1}, r"^model.frozen_until is -0.1, expected at least 0 and at most 1$"),
    ],
)
def test_wrong_numbers_are_refused(arguments, expected):
    with pytest.raises(ValueError, match=expected):
        make_task(**arguments)
