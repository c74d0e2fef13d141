"""i-Mix in two processes computes what one process computes with all of the batch, gradients included.

The plain losses of all methods are in tests/every_method/test_processes.py.
"""

from functools import partial

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from pretext.simclr import SimCLR
from ssl_toolkit.augment import RandomView
from ssl_toolkit.batch import Batch
from ssl_toolkit.distributed.ranks import rank, world_size
from ssl_toolkit.distributed.sync_batchnorm import convert_sync_batchnorm
from ssl_toolkit.losses.soft_targets import Mixing
from ssl_toolkit.modules.backbone import Backbone
from ssl_toolkit.optim import SGD
from ssl_toolkit.regularization import CutMix, LabelSmoothing, MixUp
from ssl_toolkit.schedule import Constant
from ssl_toolkit.step import StepContext

BATCH = 8


def make_task():
    torch.manual_seed(0)
    return SimCLR(
        backbone=Backbone("resnet10t", stem="small", kwargs={"channels": (8, 8, 16, 16)}),
        optimizer=SGD(),
        schedule=Constant(),
        view=RandomView(size=36),
        projector_widths=(16, 8),
        temperature=0.2,
    ).double()


def make_views():
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.rand(2, BATCH, 3, 36, 36, generator=generator, dtype=torch.float64))


class MixedLoss(torch.nn.Module):
    """The loss as a training step computes it, as a forward pass for DistributedDataParallel."""

    def __init__(self, task):
        super().__init__()
        self.task = task

    def forward(self, views, indices):
        task = self.task
        context = StepContext(batch=Batch(None, indices, None, epoch=0))

        def compute():
            output = task.loss(views, context)
            # what the naive computation needs
            self.mixing = context.mixing
            return output.loss

        for regularizer in task.regularizers:
            compute = partial(regularizer.around, task, context, compute)
        return compute()


def mixed_loss_and_gradients(passes):
    """i-Mix on this process's part of the views, with its mixing."""
    part = slice(rank() * BATCH // world_size(), (rank() + 1) * BATCH // world_size())
    task = make_task()
    task.forward_passes = passes
    task.regularizers = [MixUp(1.0, probability=0.6), CutMix(probability=0.4), LabelSmoothing(0.1)]
    for regularizer in task.regularizers:
        regularizer.prepare(task)
    kept = []
    task.backbone.register_forward_pre_hook(lambda module, inputs: kept.append(inputs[0]))
    inner = MixedLoss(task)
    module = DistributedDataParallel(convert_sync_batchnorm(inner))
    loss = module(tuple(view[part] for view in make_views()), torch.arange(BATCH)[part])
    loss.backward()
    return loss.item(), {name: p.grad for name, p in module.named_parameters()}, inner.mixing, torch.cat(kept)


@pytest.mark.parametrize("passes", [1, 2])
def test_i_mix_in_two_processes_equals_the_whole_batch_with_the_same_mixing(passes, run_processes):
    outcomes = run_processes(mixed_loss_and_gradients, 2, passes)
    losses, gradients, mixings, seen = zip(*outcomes, strict=True)
    half = BATCH // 2
    partners = torch.cat([mixings[0].partners, mixings[1].partners + half])
    weights = torch.cat([each.weights for each in mixings])
    assert (partners != torch.arange(BATCH)).any()
    first, second = make_views()
    mixed = torch.cat([each[:half] for each in seen])
    assert torch.equal(torch.cat([each[half:] for each in seen]), second)
    # whatever the mixing, a mixed pixel is one of two pixels or lies between them
    low, high = torch.minimum(first, first[partners]), torch.maximum(first, first[partners])
    assert ((low - 1e-12 <= mixed) & (mixed <= high + 1e-12)).all()

    task = make_task()
    task.forward_passes = passes
    loss = task.loss((mixed, second), StepContext(mixing=Mixing(partners, weights), smoothing=0.1)).loss
    loss.backward()
    assert sum(losses) / 2 == pytest.approx(loss.item(), rel=1e-12)
    for key, parameter in task.named_parameters():
        for each in gradients:
            torch.testing.assert_close(each[f"module.task.{key}"], parameter.grad, rtol=1e-9, atol=1e-12)
