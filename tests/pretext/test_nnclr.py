"""NNCLR: its neighbours and its loss against naive loops, its queue, its bounds, and what it refuses."""

import math

import pytest
import torch

from pretext.nnclr import NNCLR
from ssl_toolkit.augment import RandomView, Views
from ssl_toolkit.losses import info_nce
from ssl_toolkit.modules import Backbone, FeatureQueue
from ssl_toolkit.optim import SGD
from ssl_toolkit.schedule import Constant, Progress
from ssl_toolkit.step import StepContext

NUM = 5


def make_task(**arguments):
    torch.manual_seed(0)
    backbone = Backbone("resnet10t", kwargs={"channels": (4, 4, 8, 8), "stem_width": 4})
    given = {"projector_widths": (16, 8), "predictor_width": 16, "queue_size": 12, **arguments}
    if "views" not in given:
        given.setdefault("view", RandomView(24))
    return NNCLR(backbone=backbone, optimizer=SGD(), schedule=Constant(), **given).double()


def make_views(task):
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.rand(NUM, 3, size, size, generator=generator, dtype=torch.float64) for size in task.sizes)


def naive_neighbours(queries, candidates):
    """Equation 4 of the paper: of unit vectors the nearest by distance, one number at a time."""
    found = []
    for query in queries.tolist():
        query = [x / math.hypot(*query) for x in query]
        found.append(min(candidates.tolist(), key=lambda each: math.dist(each, query)))
    return torch.tensor(found, dtype=torch.float64)


def naive_loss(neighbours, predictions, temperature):
    """Equation 3 of the paper, one similarity at a time, and how often the right prediction is the nearest."""
    predictions = [[x / math.hypot(*row) for x in row] for row in predictions.tolist()]
    losses, hits = [], 0
    for place, neighbour in enumerate(neighbours.tolist()):
        similar = [sum(a * b for a, b in zip(neighbour, each, strict=True)) / temperature for each in predictions]
        losses.append(math.log(sum(math.exp(each) for each in similar)) - similar[place])
        hits += similar[place] == max(similar)
    return sum(losses) / len(losses), hits / len(neighbours)


@pytest.mark.parametrize(
    ("views", "pairs"),
    [
        ({"any": Views(count=2, size=24)}, [(0, 1), (1, 0)]),
        ({"small": Views(size=16), "large": Views(count=2, size=24)}, [(1, 0), (1, 2), (2, 0), (2, 1)]),
    ],
    ids=["two", "sizes"],
)
def test_the_loss_is_that_of_neighbours_among_the_predictions(views, pairs):
    task = make_task(views=views, temperature=0.3)
    pictures = make_views(task)
    output = task.loss(pictures, StepContext())
    _, embedded = task.embed(pictures)
    predicted = {number: task.predictor(each) for number, each in embedded.items()}
    found = [
        naive_loss(naive_neighbours(embedded[target], task.queue.features), predicted[other], 0.3)
        for target, other in pairs
    ]
    losses, hits = zip(*found, strict=True)
    assert output.loss.item() == pytest.approx(sum(losses) / len(losses))
    assert output.metrics["neighbour_top1"].item() == pytest.approx(sum(hits) / len(hits))


def test_the_nearest_is_found_whatever_the_length_of_the_query():
    queue = FeatureQueue(9, 4).double()
    queries = torch.randn(20, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = queue.nearest(queries.requires_grad_())
    torch.testing.assert_close(found, naive_neighbours(queries, queue.features))
    assert torch.equal(queue.nearest(100 * queries), found)
    assert not found.requires_grad
    # what is in the queue is its own neighbour
    assert torch.equal(queue.nearest(queue.features), queue.features)


@pytest.mark.parametrize(
    ("views", "first"),
    [({"any": Views(count=2, size=24)}, 0), ({"small": Views(size=16), "large": Views(count=2, size=24)}, 1)],
    ids=["two", "small first"],
)
def test_the_queue_gets_the_embeddings_of_one_large_view_after_the_step(views, first):
    task = make_task(views=views)
    pictures, before = make_views(task), task.queue.features.clone()
    output = task.loss(pictures, StepContext())
    assert torch.equal(task.queue.features, before)
    task.after_optimizer_step(Progress(), {name: each.detach() for name, each in output.kept.items()})
    embedded = task.embed(pictures)[1][first]
    torch.testing.assert_close(task.queue.features[:NUM], embedded / embedded.norm(dim=1, keepdim=True))
    assert torch.equal(task.queue.features[NUM:], before[NUM:])
    assert task.queue.place == NUM


def test_no_gradient_is_taken_through_the_neighbours():
    task = make_task()
    pictures = make_views(task)
    task.loss(pictures, StepContext()).loss.backward()
    found = [each.grad.clone() for each in task.parameters()]
    task.zero_grad()
    one, other = task.embed(pictures)[1].values()
    losses = [
        info_nce(naive_neighbours(target, task.queue.features), task.predictor(view), 0.1)[0]
        for target, view in ((one, other), (other, one))
    ]
    torch.stack(losses).mean().backward()
    torch.testing.assert_close(found, [each.grad for each in task.parameters()])
    assert sum(float(each.norm()) for each in found) > 0.1


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
        ({"temperature": 0.0}, r"^model.temperature is 0.0, expected above 0$"),
        ({"queue_size": 0}, r"^a feature queue holds at least 1 embedding, got a size of 0$"),
    ],
)
def test_wrong_numbers_are_refused(arguments, expected):
    with pytest.raises(ValueError, match=expected):
        make_task(**arguments)
