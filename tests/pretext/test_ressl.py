"""ReSSL: who sees which view, its relations against a loop, its queue and bounds, and what it refuses."""

import math

import pytest
import torch
import torch.nn.functional as F

from pretext.ressl import ReSSL
from ssl_toolkit.augment import RandomView, Views
from ssl_toolkit.batch import Batch, Images
from ssl_toolkit.losses import soft_assignment_loss
from ssl_toolkit.modules import Backbone
from ssl_toolkit.optim import SGD
from ssl_toolkit.schedule import Constant, Progress

NUM = 5
VIEWS = {"weak": Views(size=24, preset="crop_and_flip"), "strong": Views(count=2, size=24, preset="moco_v2")}


def make_task(**arguments):
    torch.manual_seed(0)
    backbone = Backbone("resnet10t", stem="small", kwargs={"channels": (4, 4, 8, 8), "stem_width": 4})
    given = {"projector_widths": (16, 8), "queue_size": 12, "views": VIEWS, **arguments}
    return ReSSL(backbone=backbone, optimizer=SGD(), schedule=Constant(), **given)


def make_batch():
    pixels = torch.randint(0, 256, (NUM, 3, 32, 32), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    return Batch(Images(pixels, torch.full((NUM, 2), 32)), torch.arange(NUM), torch.full((NUM,), -1), 0)


def cosines(embedding, queue):
    return [float(F.cosine_similarity(embedding.detach(), each, dim=0)) for each in queue]


def test_the_student_learns_the_teacher_s_relations_one_number_at_a_time():
    task, batch = make_task(temperature=0.2, teacher_temperature=0.1).eval().double(), make_batch()
    weak, *strong = (view.double() for view in task.make_views(batch.images, task.keys(batch)))
    taught, expected, nearest = task.teacher(weak), 0.0, 0
    for view in strong:
        for key, query in zip(taught, task.projector(task.backbone(view)), strict=True):
            of_teacher = cosines(key, task.queue.features)
            of_student = cosines(query, task.queue.features)
            total = sum(math.exp(each / 0.1) for each in of_teacher)
            spread = math.log(sum(math.exp(each / 0.2) for each in of_student))
            pairs = list(zip(of_teacher, of_student, strict=True))
            expected -= sum(math.exp(t / 0.1) / total * (s / 0.2 - spread) for t, s in pairs) / (2 * NUM)
            nearest += of_teacher.index(max(of_teacher)) == of_student.index(max(of_student))
    task.make_views = lambda *_: (weak, *strong)
    output = task.compute(batch)
    assert output.loss.item() == pytest.approx(expected, rel=1e-6)  # the queue is float32 of length 1
    assert output.metrics["same_nearest"].item() == pytest.approx(nearest / (2 * NUM))
    output.loss.backward()
    assert all(each.grad is None for each in task.teacher.parameters())


def test_the_teacher_sees_the_first_view_and_the_student_the_others():
    task, seen = make_task(), []
    for backbone in (task.backbone, task.teacher.network("backbone")):
        backbone.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    batch = make_batch()
    weak, *strong = task.make_views(batch.images, task.keys(batch))
    task.compute(batch)
    assert len(seen) == 2
    assert torch.equal(seen[0], torch.cat(strong))
    assert torch.equal(seen[1], weak)
    # in the order in which they are written, whatever their names and sizes
    small = make_task(views={"strong": Views(size=16, blur=0), "weak": Views(size=24)})
    assert small.taught_pairs() == [(0, 1)]
    assert make_task(views=None, view=RandomView(24)).taught_pairs() == [(0, 1)]


def test_after_a_step_the_queue_holds_what_the_teacher_said_of_the_weak_view():
    task, batch = make_task().eval(), make_batch()
    weak = task.make_views(batch.images, task.keys(batch))[0]
    before, taught = task.queue.features.clone(), task.teacher(weak)
    task.after_optimizer_step(Progress(), task.compute(batch).kept)
    torch.testing.assert_close(task.queue.features, torch.cat([F.normalize(taught, dim=1), before[NUM:]]))


def test_bounds_are_those_of_chance_and_of_the_same_embeddings():
    task = make_task(projector_widths=(16, 256), queue_size=2000)
    same = torch.randn(50, 256, generator=torch.Generator().manual_seed(0))
    relations = task.queue.similarities(same)
    met = soft_assignment_loss(relations / 0.1, (relations / 0.04).softmax(dim=1))
    assert met.item() == pytest.approx(task.least_loss(50), abs=0.05)
    even = torch.zeros(4, 2000)
    assert soft_assignment_loss(even, even.softmax(dim=1)).item() == pytest.approx(task.initial_loss(4))
    assert make_task().least_loss(4) == 0


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"temperature": 0.0}, r"^model.temperature is 0.0, expected above 0$"),
        ({"teacher_temperature": 0.1}, r"^model.teacher_temperature is 0.1, expected above 0 and below .* \(0.1\), so"),
        ({"teacher_temperature": 0.0}, r"^model.teacher_temperature is 0.0, expected above 0 and below"),
        ({"queue_size": 0}, r"^a feature queue holds at least 1 embedding, got a size of 0$"),
        ({"momentum": 1.1}, r"^model.momentum is 1.1, expected at least 0 and at most 1$"),
    ],
)
def test_wrong_numbers_are_refused(arguments, expected):
    with pytest.raises(ValueError, match=expected):
        make_task(**arguments)
