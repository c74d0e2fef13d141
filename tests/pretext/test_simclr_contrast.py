"""SimCLR's decoupled losses: what the option does, its bounds, and several processes against one."""

import pytest
import torch

from pretext.simclr import SimCLR
from ssl_toolkit.augment import RandomView
from ssl_toolkit.batch import Batch, Images
from ssl_toolkit.distributed.ranks import rank
from ssl_toolkit.losses import dcl, supcon
from ssl_toolkit.modules import Backbone
from ssl_toolkit.optim import SGD
from ssl_toolkit.regularization import MixUp
from ssl_toolkit.schedule import Constant

NUM = 6
LABELS = torch.tensor([0, 1, 0, 1, -1, 0])


def make_task(**arguments):
    torch.manual_seed(0)
    backbone = Backbone("resnet10t", stem="small", kwargs={"channels": (4, 4, 8, 8), "stem_width": 4})
    given = {"projector_widths": (16, 8), "view": RandomView(24), **arguments}
    return SimCLR(backbone=backbone, optimizer=SGD(), schedule=Constant(), **given)


@pytest.mark.parametrize(("contrast", "sigma"), [("dcl", None), ("dclw", 0.5)])
def test_the_option_chooses_the_loss(contrast, sigma):
    task = make_task(contrast=contrast, temperature=0.3).eval()
    pixels = torch.randint(0, 256, (NUM, 3, 32, 32), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    batch = Batch(Images(pixels, torch.full((NUM, 2), 32)), torch.arange(NUM), torch.full((NUM,), -1), 0)
    embedded = [task.projector(task.backbone(view)) for view in task.make_views(batch.images, task.keys(batch))]
    loss, top1 = dcl(*embedded, 0.3, sigma)
    output = task.compute(batch)
    torch.testing.assert_close((output.loss, output.metrics["pair_top1"]), (loss, top1))


def test_bounds_are_those_of_chance_and_of_a_simplex():
    task = make_task(contrast="dcl", temperature=0.5)
    same = torch.ones(2, 9, 8, dtype=torch.float64)
    # the partner is as near as the rest, which is 2 = 1 / 0.5
    assert dcl(*same, 0.5)[0].item() == pytest.approx(task.initial_loss(9))
    corners = torch.eye(8, dtype=torch.float64) - 1 / 8
    assert dcl(corners, corners, 0.5)[0].item() == pytest.approx(task.least_loss(8))


def test_what_it_cannot_do_is_refused():
    with pytest.raises(ValueError, match=r"model.contrast is 'dcl2', expected nt_xent, dcl or dclw"):
        make_task(contrast="dcl2")
    make_task(regularizers=[MixUp()]).check()
    with pytest.raises(ValueError, match="SimCLR"):
        make_task(contrast="dcl", regularizers=[MixUp()]).check()


LOSSES = {
    "dcl": lambda first, second, labels: dcl(first, second, 0.2)[0],
    "dclw": lambda first, second, labels: dcl(first, second, 0.2, 0.5)[0],
    "supcon": lambda first, second, labels: supcon(first, second, labels, 0.2)[0],
}


def whole(name, views):
    leaves = views.clone().requires_grad_()
    loss = LOSSES[name](*leaves, LABELS)
    loss.backward()
    return loss.item(), leaves.grad


def of_a_part(views):
    found = []
    for loss in LOSSES.values():
        leaves = views.chunk(3, dim=1)[rank()].clone().requires_grad_()
        value = loss(*leaves, LABELS.chunk(3)[rank()])
        value.backward()
        found.append((value.item(), leaves.grad))
    return found


def test_three_processes_have_the_loss_and_the_gradient_of_one(run_processes):
    views = torch.randn(2, NUM, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    parts = run_processes(of_a_part, 3, views)
    for number, name in enumerate(LOSSES):
        loss, gradient = whole(name, views)
        assert sum(part[number][0] for part in parts) / 3 == pytest.approx(loss, rel=1e-10)
        # DDP averages over the three
        averaged = torch.cat([part[number][1] for part in parts], dim=1) / 3
        torch.testing.assert_close(averaged, gradient, rtol=1e-9, atol=1e-12)
