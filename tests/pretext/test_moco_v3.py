"""MoCo v3: its loss against a naive loop, its scale, its bounds, and what it refuses."""

import math

import pytest
import torch

from pretext.moco_v3 import MoCoV3
from ssl_toolkit.augment import RandomView, Views
from ssl_toolkit.losses import info_nce
from ssl_toolkit.modules import Backbone
from ssl_toolkit.optim import SGD
from ssl_toolkit.schedule import Constant, Progress, Scheduled
from ssl_toolkit.step import StepContext

NUM = 5


def make_task(**arguments):
    torch.manual_seed(0)
    backbone = Backbone("resnet10t", kwargs={"channels": (4, 4, 8, 8), "stem_width": 4})
    given = {"projector_widths": (16, 8), "predictor_width": 16, **arguments}
    if "views" not in given:
        given.setdefault("view", RandomView(24))
    return MoCoV3(backbone=backbone, optimizer=SGD(), schedule=Constant(), **given).double()


def make_views(task):
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.rand(NUM, 3, size, size, generator=generator, dtype=torch.float64) for size in task.sizes)


def naive_info_nce(queries, keys, temperature):
    """Equation 1 of the paper, one similarity at a time, and how often the right key is the nearest."""
    queries, keys = ([[x / math.hypot(*row) for x in row] for row in each.tolist()] for each in (queries, keys))
    losses, hits = [], 0
    for place, query in enumerate(queries):
        similar = [sum(a * b for a, b in zip(query, key, strict=True)) / temperature for key in keys]
        losses.append(math.log(sum(math.exp(each) for each in similar)) - similar[place])
        hits += similar[place] == max(similar)
    return sum(losses) / len(losses), hits / len(queries)


@pytest.mark.parametrize(
    ("views", "pairs"),
    [
        ({"any": Views(count=2, size=24)}, [(0, 1), (1, 0)]),
        ({"large": Views(count=2, size=24), "small": Views(size=16)}, [(0, 1), (0, 2), (1, 0), (1, 2)]),
    ],
    ids=["two", "sizes"],
)
def test_the_loss_is_the_mean_over_directions_times_twice_the_temperature(views, pairs):
    task = make_task(views=views, temperature=0.3)
    # a teacher that is another network than the student
    for each in task.teacher.parameters():
        each.data.mul_(1.1).add_(0.01)
    pictures = make_views(task)
    output = task.loss(pictures, StepContext())
    queries = {number: task.predictor(each) for number, each in task.embed(pictures)[1].items()}
    keys = task.teach(pictures)
    found = [naive_info_nce(queries[student], keys[teacher], 0.3) for teacher, student in pairs]
    losses, hits = zip(*found, strict=True)
    assert output.loss.item() == pytest.approx(2 * 0.3 * sum(losses) / len(losses))
    assert output.metrics["key_top1"].item() == pytest.approx(sum(hits) / len(hits))


def test_the_student_learns_and_the_teacher_does_not():
    task = make_task()
    task.loss(make_views(task), StepContext()).loss.backward()
    assert all(each.grad is None for each in task.teacher.parameters())
    learned = [each for network in (task.backbone, task.projector, task.predictor) for each in network.parameters()]
    assert all(each.grad is not None for each in learned)


def test_a_large_temperature_has_the_same_gradient_as_a_larger_one():
    gradients = []
    for temperature in (50.0, 100.0):
        task = make_task(temperature=temperature)
        task.loss(make_views(task), StepContext()).loss.backward()
        gradients.append(torch.cat([each.grad.flatten() for each in task.predictor.parameters()]))
    assert gradients[0].norm() > 1e-3
    assert (gradients[0] - gradients[1]).norm() < 0.03 * gradients[0].norm()


def test_the_temperature_follows_its_schedule():
    task = make_task(temperature=Scheduled(0.5, 0.1))
    pictures = make_views(task)
    found = [task.loss(pictures, StepContext(progress=Progress(done))).loss.item() for done in (0.0, 1.0)]
    expected = [make_task(temperature=each).loss(pictures, StepContext()).loss.item() for each in (0.5, 0.1)]
    assert found == pytest.approx(expected)


def test_bounds_are_those_of_chance_and_of_a_simplex():
    task = make_task(temperature=0.5)
    same = torch.ones(9, 8)
    assert 2 * 0.5 * info_nce(same, same, 0.5)[0].item() == pytest.approx(task.initial_loss(9))
    corners = torch.eye(8, dtype=torch.float64) - 1 / 8
    assert 2 * 0.5 * info_nce(corners, corners, 0.5)[0].item() == pytest.approx(task.least_loss(8))
    assert task.least_loss(1) == 0


def test_keys_that_scatter_are_within_the_margin():
    task = make_task(temperature=0.2)
    # cosines of random vectors of 16 dimensions scatter by 0.25
    queries, keys = torch.randn(2, 400, 16, generator=torch.Generator().manual_seed(0))
    loss = 2 * 0.2 * info_nce(queries, keys, 0.2)[0].item()
    assert 0 < loss - task.initial_loss(400) < task.initial_loss_margin[1]


def test_a_temperature_of_0_is_refused():
    with pytest.raises(ValueError, match=r"^model.temperature is 0.0, expected above 0$"):
        make_task(temperature=0.0)
