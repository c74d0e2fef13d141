"""DenseCL: one pass for both heads, its two losses and queues, and maps in which there is nothing to match."""

import pytest
import torch
import torch.nn.functional as F

from pretext.densecl import DenseCL
from ssl_toolkit.augment import RandomView, Views
from ssl_toolkit.batch import Batch, Images
from ssl_toolkit.callbacks import ProgressiveSize
from ssl_toolkit.losses import dense_info_nce, info_nce, similar_places
from ssl_toolkit.modules import Backbone
from ssl_toolkit.optim import SGD
from ssl_toolkit.schedule import Constant, Progress, Scheduled
from ssl_toolkit.step import StepContext

NUM = 6


def make_task(**arguments):
    torch.manual_seed(0)
    backbone = Backbone("resnet10t", stem="small", kwargs={"channels": (4, 4, 8, 8), "stem_width": 4})
    given = {"projector_widths": (16, 8), "queue_size": 10, "view": RandomView(24), **arguments}
    return DenseCL(backbone=backbone, optimizer=SGD(), schedule=Constant(), **given)


def make_batch():
    pixels = torch.randint(0, 256, (NUM, 3, 32, 32), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    return Batch(Images(pixels, torch.full((NUM, 2), 32)), torch.arange(NUM), torch.full((NUM,), -1), 0)


def by_hand(networks, x):
    """Whole embedding, rows of the map, and their embeddings, by two passes and a loop over the places."""
    backbone = networks.backbone
    whole, maps = networks.projector(backbone(x)), backbone.feature_maps(x)[backbone.stages[-1]]
    rows = torch.stack([maps[:, :, i, j] for i in range(3) for j in range(3)], dim=1)
    return whole, rows, networks.dense_projector(rows.reshape(-1, 8)).reshape(NUM, 9, 8)


def test_the_loss_is_the_weighted_mean_of_both_heads():
    task, batch = make_task(dense_weight=0.3).eval(), make_batch()
    first, second = task.make_views(batch.images, task.keys(batch))
    (query, query_map, places), (key, key_map, key_places) = by_hand(task, first), by_hand(task.teacher, second)
    whole = info_nce(query, key, 0.2, task.queue.features)[0]
    partners = similar_places(query_map, key_map)
    dense = dense_info_nce(places, key_places, partners, 0.2, task.dense_queue.features)[0]
    output = task.compute(batch)
    torch.testing.assert_close(output.loss, 0.7 * whole + 0.3 * dense)
    torch.testing.assert_close(output.features, task.backbone(first))
    torch.testing.assert_close(output.kept["keys"], key[:, None])
    torch.testing.assert_close(output.kept["dense_keys"], key_places.mean(dim=1)[:, None])
    output.loss.backward()
    assert all(each.grad is None for each in task.teacher.parameters())


def test_each_network_passes_each_view_once():
    task, seen = make_task(), []
    for backbone in (task.backbone, task.teacher.network("backbone")):
        backbone.model.conv1.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    task.compute(make_batch())
    assert seen == [NUM, NUM]


def test_views_of_several_sizes_match_maps_of_several_sizes():
    views = {"large": Views(count=2, size=32), "small": Views(count=1, size=16, blur=0)}
    task = make_task(view=None, views=views, symmetric=True)
    output = task.compute(make_batch())
    assert output.loss.isfinite()
    assert output.kept["dense_keys"].shape == (NUM, 2, 8)
    assert len(output.features) == 3 * NUM


def test_after_a_step_both_queues_hold_the_keys():
    task = make_task(symmetric=True)
    output = task.compute(make_batch())
    task.after_optimizer_step(Progress(), output.kept)
    for queue, name in ((task.queue, "keys"), (task.dense_queue, "dense_keys")):
        expected = F.normalize(output.kept[name].flatten(0, 1), dim=1)
        # twelve keys in a queue of ten: the last ones stay
        assert torch.equal(queue.features, expected[-10:])
    assert not torch.equal(task.queue.features, task.dense_queue.features)


def test_the_weight_of_the_places_may_warm_up():
    weight = Scheduled(0.5, 0.0, Constant(warmup_steps=10))
    task, batch = make_task(dense_weight=weight).eval(), make_batch()
    views = task.make_views(batch.images, task.keys(batch))

    def loss(step):
        return task.loss(views, StepContext(progress=Progress(step, 100, 10.0))).loss

    task.dense_weight = 0.0
    alone = loss(0)
    task.dense_weight = 1.0
    dense = loss(0)
    task.dense_weight = weight
    at = {step: weight.at(Progress(step, 100, 10.0)) for step in (0, 4, 50)}
    assert at[0] < at[4] < at[50] == 0.5
    for step, each in at.items():
        torch.testing.assert_close(loss(step), (1 - each) * alone + each * dense)


@pytest.mark.parametrize("weight", [-0.1, 1.5, Scheduled(2.0, 0.0)])
def test_a_weight_out_of_range_is_refused(weight):
    with pytest.raises(ValueError, match=r"^model.dense_weight is .*, expected at least 0 and at most 1"):
        make_task(dense_weight=weight)


def test_maps_of_one_pixel_are_refused():
    expected = (
        r"^views of 8 px leave a feature map of one pixel, of which nothing dense is learned; make them larger .*$"
    )
    with pytest.raises(ValueError, match=expected):
        make_task(view=RandomView(8, blur=0))
    # and views that are smaller for a while
    task = make_task()
    for view, _ in task.random_views:
        view.side = ProgressiveSize(start=0.34, until=1.0, multiple=4).side(view.size, 0)
    with pytest.raises(ValueError, match=expected):
        task.compute(make_batch())
