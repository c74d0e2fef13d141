"""A loss or a gradient that is not finite never gets into the weights."""

from __future__ import annotations

import sys
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from ssl_toolkit.errors import RunFailed
from ssl_toolkit.parts import own_part

_MOST_NAMED = 8


class NonFinite(Callback):
    """Stops a run at a loss or gradient that is NaN or infinite, in all processes, before the optimizer's step.

    The newest checkpoint is then as sound as the weights were. In float16 the gradient's scaling looks after infinite
    gradients itself, by leaving such steps out, so there is nothing to stop for.

    Args:
        skip: How many such steps of the whole run are left out instead, 0 or more: for a rare bad image, say. The
            weights and BatchNorm's statistics then stay as they were.
    """

    def __init__(self, skip: int = 0) -> None:
        if skip < 0:
            raise ValueError(f"nonfinite.skip is {skip}, expected a number of steps, 0 or more")
        self.skip = skip
        self._num_skipped = 0
        self._losses: list[Tensor] = []
        self._indices: list[Tensor] = []
        self._buffers: dict[str, Tensor] = {}

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Notes the images, and at the beginning of a step what it may change before its gradient is known."""
        if not self._indices and self._num_skipped < self.skip:
            self._buffers = {name: buffer.clone() for name, buffer in pl_module.named_buffers()}
        self._indices.append(batch.indices)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Notes the loss."""
        self._losses.append(loss.detach())

    @torch.no_grad()
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Looks at the losses and the gradients of the step."""
        losses, indices = self._losses, self._indices
        self._losses, self._indices = [], []
        if trainer.precision == "16-mixed":
            return
        gradients = [own_part(each.grad) for each in pl_module.parameters() if each.grad is not None]
        sizes = torch.stack([*losses, torch.nn.utils.get_total_norm(gradients)])
        is_bad: Any = (~sizes.isfinite()).any().int()
        if trainer.world_size > 1:
            is_bad = trainer.strategy.reduce(is_bad, reduce_op="max")
        if not is_bad:
            return
        found = _describe(trainer.global_step, pl_module, losses, torch.cat(indices))
        if self._num_skipped >= self.skip:
            raise RunFailed(
                f"{found}. The weights are as they were before. Look at these images, try a lower learning rate, "
                "gradient clipping (--trainer.gradient_clip_val 1) or --trainer.precision 32-true, or leave such steps "
                f"out (--nonfinite.skip, now {self.skip}); --resume goes on from the newest checkpoint"
            )
        self._num_skipped += 1
        for parameter in pl_module.parameters():
            parameter.grad = None
        for name, buffer in pl_module.named_buffers():
            if name in self._buffers:
                buffer.copy_(self._buffers[name])
        print(f"\n{found}: left out ({self._num_skipped} of at most {self.skip})", file=sys.stderr)

    def state_dict(self) -> dict[str, Any]:
        """How many steps were left out."""
        return {"num_skipped": self._num_skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As it was saved."""
        self._num_skipped = state_dict["num_skipped"]


def _describe(step: int, module: LightningModule, losses: list[Tensor], indices: Tensor) -> str:
    """What is not finite, where, and with which images."""
    places = [f"the loss is {float(loss)}" for loss in losses if not loss.isfinite()][:1]
    for name, parameter in module.named_parameters():
        if parameter.grad is not None and not own_part(parameter.grad).isfinite().all():
            places.append(f"the gradient of {name} is not finite")
            break
    named = ", ".join(map(str, indices[:_MOST_NAMED].tolist())) + (", ..." if len(indices) > _MOST_NAMED else "")
    return f"step {step + 1}: {' and '.join(places) or 'another process has no finite loss'} (images {named})"
