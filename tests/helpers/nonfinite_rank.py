"""A callback for runs of several processes: in one of them a loss, or a gradient alone, is not finite in one step."""

import torch
from lightning.pytorch import Callback

from ssl_toolkit.distributed.ranks import rank

STEP = 3


class NonFiniteRank(Callback):
    """Spoils the second process's step.

    Args:
        what: "loss" or "gradient".
    """

    def __init__(self, what: str) -> None:
        self.what = what

    def on_fit_start(self, trainer, pl_module):
        original = pl_module.training_step

        def training_step(batch, batch_idx):
            loss = original(batch, batch_idx)
            if rank() != 1 or pl_module.global_step != STEP:
                return loss
            if self.what == "loss":
                return loss * torch.inf
            weight = next(pl_module.backbone.parameters())
            # its value is 0, its derivative infinite
            return loss + (weight.flatten()[:1] - weight.flatten()[:1].detach()).abs().sqrt().sum()

        pl_module.training_step = training_step
