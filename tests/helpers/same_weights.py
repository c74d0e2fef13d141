"""A callback for runs of several processes: they fail if their weights have drifted apart."""

import torch
from lightning.pytorch import Callback

from ssl_toolkit.distributed.ranks import world_size


class SameWeights(Callback):
    """Compares the trainable weights of all processes after each step."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        assert world_size() == 2
        own = torch.cat([each.detach().flatten() for each in pl_module.parameters() if each.requires_grad])
        highest = trainer.strategy.reduce(own.clone(), reduce_op="max")
        lowest = trainer.strategy.reduce(own.clone(), reduce_op="min")
        assert torch.equal(highest, lowest), "the weights differ"
