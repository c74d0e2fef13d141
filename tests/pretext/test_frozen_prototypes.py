"""SwAV and DINO leave their prototypes as they are for a part of the run, whatever the optimizer does."""

import pytest
import test_dino
import test_swav
import torch

from ssl_toolkit.optim import SGD, Adam
from ssl_toolkit.schedule import Progress


@pytest.mark.parametrize("make", [test_swav.make_task, test_dino.make_task])
@pytest.mark.parametrize("optimizer", [Adam(lr=0.01, weight_decay=0.1), SGD(lr=0.1, momentum=0.9)])
def test_the_prototypes_stay_for_a_while(make, optimizer):
    """A gradient of 0 would not do: both optimizers move without one, by weight decay or by their momentum."""
    task = make(frozen_until=0.2)
    stepping = optimizer.build([{"params": list(task.parameters())}])
    weight = task.prototypes.weight
    for step, moves in ((0, False), (19, False), (20, True), (21, True)):
        task.progress = Progress(step, 100, 10.0)
        before, first = weight.detach().clone(), task.projector[0].weight.detach().clone()
        stepping.zero_grad()
        output = task.compute(test_swav.make_batch())
        output.loss.backward()
        task.on_before_optimizer_step(stepping)
        stepping.step()
        with torch.no_grad():
            task.after_optimizer_step(Progress(step + 1, 100, 10.0), output.kept)
        assert (not torch.equal(weight, before)) == moves
        assert not torch.equal(task.projector[0].weight, first)
