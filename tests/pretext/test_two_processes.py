"""Two processes with half of the batch each compute what one process computes with all of it, gradients included."""

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from pretext.patch_position import PatchPosition
from pretext.simclr import SimCLR
from ssl_toolkit.augment import RandomView
from ssl_toolkit.backbones import Backbone
from ssl_toolkit.distributed import convert_sync_batchnorm
from ssl_toolkit.optim import SGD
from ssl_toolkit.processes import rank, world_size
from ssl_toolkit.schedule import Constant

BATCH = 8


def make_task(name):
    torch.manual_seed(0)
    shared = {
        "backbone": Backbone("resnet10t", stem="small", kwargs={"channels": (8, 8, 16, 16)}),
        "optimizer": SGD(),
        "schedule": Constant(),
        "view": RandomView(size=36),
    }
    if name == "simclr":
        return SimCLR(**shared, projector_widths=(16, 8), temperature=0.2).double()
    return PatchPosition(**shared, patch_size=12, jitter=0, hidden_width=16).double()


def make_views(name):
    generator = torch.Generator().manual_seed(1)
    if name == "simclr":
        return tuple(torch.rand(2, BATCH, 3, 36, 36, generator=generator, dtype=torch.float64))
    return torch.rand(BATCH, 9, 3, 12, 12, generator=generator, dtype=torch.float64)


class Loss(torch.nn.Module):
    """The task's loss as a forward pass, for DistributedDataParallel."""

    def __init__(self, task):
        super().__init__()
        self.task = task

    def forward(self, views):
        return self.task.loss(views).loss


def loss_and_gradients(name):
    """On this process's share of the views."""
    share = slice(rank() * BATCH // world_size(), (rank() + 1) * BATCH // world_size())
    views = make_views(name)
    views = tuple(view[share] for view in views) if name == "simclr" else views[share]
    module = Loss(make_task(name))
    if world_size() > 1:
        module = DistributedDataParallel(convert_sync_batchnorm(module))
    loss = module(views)
    loss.backward()
    return loss.item(), {name: p.grad for name, p in module.named_parameters()}


@pytest.mark.parametrize("name", ["simclr", "patch_position"])
def test_two_processes_equal_one(name, run_processes):
    loss, gradients = loss_and_gradients(name)
    (first_loss, first), (second_loss, second) = run_processes(loss_and_gradients, 2, name)
    assert (first_loss + second_loss) / 2 == pytest.approx(loss, rel=1e-12)
    assert len(gradients) == len(first)
    for key, gradient in gradients.items():
        torch.testing.assert_close(first[f"module.{key}"], gradient, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(second[f"module.{key}"], gradient, rtol=1e-9, atol=1e-12)
