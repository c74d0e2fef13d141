"""SimSiam and FastSiam: loss and gradient against naive computations, the targets, and what is refused."""

import pytest
import torch

from pretext.simsiam import SimSiam
from ssl_toolkit.augment import RandomView, Views
from ssl_toolkit.batch import Batch, Images
from ssl_toolkit.modules import Backbone
from ssl_toolkit.optim import SGD
from ssl_toolkit.schedule import Constant

NUM = 6


def make_task(**arguments):
    torch.manual_seed(0)
    backbone = Backbone("resnet10t", kwargs={"channels": (4, 4, 8, 8), "stem_width": 4})
    given = {"projector_widths": (16, 8), "predictor_width": 4, **arguments}
    if "views" not in given:
        given.setdefault("view", RandomView(24))
    return SimSiam(backbone=backbone, optimizer=SGD(), schedule=Constant(), **given).double()


def make_views(task):
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.rand(NUM, 3, size, size, generator=generator, dtype=torch.float64) for size in task.sizes)


def cosine(predictions, targets):
    """The mean cosine similarity, one row at a time."""
    rows = zip(predictions.tolist(), targets.tolist(), strict=True)
    found = []
    for one, other in rows:
        product = sum(a * b for a, b in zip(one, other, strict=True))
        found.append(product / (sum(a * a for a in one) * sum(b * b for b in other)) ** 0.5)
    return sum(found) / len(found)


def mean_of(targets):
    return sum(targets) / len(targets)


@pytest.mark.parametrize("target", ["each", "mean"])
@pytest.mark.parametrize(
    ("views", "learned"),
    [
        ({"any": Views(count=2, size=24)}, {0: [1], 1: [0]}),
        ({"any": Views(count=4, size=24)}, {0: [1, 2, 3], 1: [0, 2, 3], 2: [0, 1, 3], 3: [0, 1, 2]}),
        # small views are no targets
        ({"large": Views(count=2, size=24), "small": Views(size=16)}, {0: [1], 1: [0], 2: [0, 1]}),
        # and what has no target is not learned from
        ({"small": Views(size=16), "large": Views(size=24)}, {0: [1]}),
    ],
    ids=["two", "four", "sizes", "one large"],
)
def test_each_view_predicts_the_other_large_ones(views, learned, target):
    task = make_task(views=views, target=target)
    pictures = make_views(task)
    output = task.loss(pictures, None)
    _, embedded = task.embed(pictures)
    expected = []
    for number, others in learned.items():
        predicted, found = task.predictor(embedded[number]), [embedded[other] for other in others]
        expected += [2 - 2 * cosine(predicted, each) for each in ([mean_of(found)] if target == "mean" else found)]
    assert output.loss.item() == pytest.approx(sum(expected) / len(expected))
    assert output.metrics["cosine"].item() == pytest.approx(1 - output.loss.item() / 2)


def test_no_gradient_is_taken_through_a_target():
    task = make_task()
    pictures = make_views(task)
    task.loss(pictures, None).loss.backward()
    found = [each.grad.clone() for each in task.parameters()]
    task.zero_grad()
    # algorithm 1 of the paper, with targets that are numbers
    one, other = task.embed(pictures)[1].values()
    goals = [each.detach().clone() for each in (one, other)]
    for embedded, goal in ((one, goals[1]), (other, goals[0])):
        predicted = task.predictor(embedded)
        predicted = predicted / predicted.norm(dim=1, keepdim=True)
        loss = -(predicted * goal / goal.norm(dim=1, keepdim=True)).sum(dim=1).mean()
        loss.backward(retain_graph=True)
    torch.testing.assert_close(found, [each.grad for each in task.parameters()])
    # with a gradient through the targets it would be another one
    task.zero_grad()
    similar = torch.nn.functional.cosine_similarity
    both = similar(task.predictor(one), other).mean() + similar(task.predictor(other), one).mean()
    (2 - both).backward()
    assert any(not torch.allclose(each.grad, grad) for each, grad in zip(task.parameters(), found, strict=True))


def test_of_two_views_the_mean_is_each():
    losses = []
    for target in ("each", "mean"):
        task = make_task(target=target)
        losses.append(task.loss(make_views(task), None).loss.item())
    assert losses[0] == losses[1]


def test_embeddings_end_with_a_normalisation_and_predictions_do_not():
    task = make_task()
    _, embedded = task.embed(make_views(task))
    both = torch.cat(list(embedded.values()))
    torch.testing.assert_close(both.mean(dim=0), torch.zeros(8).double(), rtol=0, atol=1e-9)
    torch.testing.assert_close(both.std(dim=0, correction=0), torch.ones(8).double(), rtol=1e-2, atol=0)
    assert not task.projector[-1].affine
    assert isinstance(task.predictor[-1], torch.nn.Linear)


def test_an_unknown_target_is_refused():
    with pytest.raises(ValueError, match=r"^model.target is 'meen', expected each or mean$"):
        make_task(target="meen")


def test_a_step_from_images_is_finite():
    pixels = torch.randint(0, 256, (NUM, 3, 32, 32), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    batch = Batch(Images(pixels, torch.full((NUM, 2), 32)), torch.arange(NUM), torch.full((NUM,), -1), 0)
    task = make_task(views={"any": Views(count=4, size=24)}, target="mean").float()
    output = task.compute(batch)
    assert output.features.shape == (4 * NUM, 8)
    assert 0 < output.loss.item() < 4
