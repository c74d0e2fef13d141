"""Non-finite losses and gradients: none of them gets into the weights."""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from ssl_toolkit.distributed.collectives import all_reduce_max
from ssl_toolkit.distributed.dtensor import local_tensor
from ssl_toolkit.errors import RunFailed

_MOST_NAMED = 8


class _Step(NamedTuple):
    """A step whose verdict is on its way from the GPU.

    Attributes:
        number: Steps before it.
        is_bad: On the CPU, once it has arrived.
        arrived: The event that tells so.
        losses: Of its batches.
        indices: Of their images.
    """

    number: int
    is_bad: Tensor
    arrived: Any
    losses: list[Tensor]
    indices: Tensor


class NonFinite(Callback):
    """Non-finite check: stops a run at a NaN or infinite loss or gradient, in all processes, before the optimizer step.

    The newest checkpoint is then as sound as the weights were. In float16 the gradient's scaling looks after infinite
    gradients itself, by leaving such steps out, so there is nothing to stop for.

    On a GPU a fused optimizer is told to leave such a step out, and the run stops during the next step, because to look
    at the gradient at once would have the GPU wait for the processor in each step.

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
        self._unseen: _Step | None = None

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
        """Looks at the losses and the gradients of the step, on a GPU at those of the step before."""
        losses, indices = self._losses, torch.cat(self._indices)
        self._losses, self._indices = [], []
        if trainer.precision == "16-mixed":
            return
        gradients = [local_tensor(each.grad) for each in pl_module.parameters() if each.grad is not None]
        sizes = torch.stack([*losses, torch.nn.utils.get_total_norm(gradients)])
        is_bad = all_reduce_max((~sizes.isfinite()).any().float())
        if not self.skip and _leaves_out(optimizer, is_bad):
            self._look_at_unseen()
            self._unseen = _Step(trainer.global_step, *_on_its_way(is_bad), losses, indices)
            return
        if not is_bad:
            return
        found = _describe(trainer.global_step, losses, indices, _first_bad_gradient(pl_module))
        if self._num_skipped >= self.skip:
            raise self._failed(found)
        self._num_skipped += 1
        for parameter in pl_module.parameters():
            parameter.grad = None
        for name, buffer in pl_module.named_buffers():
            if name in self._buffers:
                buffer.copy_(self._buffers[name])
        print(f"\n{found}: left out ({self._num_skipped} of at most {self.skip})", file=sys.stderr)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Looks at the last step before something is measured."""
        self._look_at_unseen()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Looks at the last step before something is measured."""
        self._look_at_unseen()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Looks at the last step before the weights are written."""
        self._look_at_unseen()

    def state_dict(self) -> dict[str, Any]:
        """How many steps were left out; looks at the last step before a checkpoint is written."""
        self._look_at_unseen()
        return {"num_skipped": self._num_skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As it was saved."""
        self._num_skipped = state_dict["num_skipped"]

    def _look_at_unseen(self) -> None:
        step, self._unseen = self._unseen, None
        if step is None:
            return
        step.arrived.synchronize()
        if step.is_bad:
            raise self._failed(_describe(step.number, step.losses, step.indices, "a gradient"))

    def _failed(self, found: str) -> RunFailed:
        return RunFailed(
            f"{found}. The weights are as they were before. Look at these images, try a lower learning rate, "
            "gradient clipping (--trainer.gradient_clip_val 1) or --trainer.precision 32-true, or leave such steps "
            f"out (--nonfinite.skip, now {self.skip}); --resume goes on from the newest checkpoint"
        )


def _leaves_out(optimizer: Optimizer, is_bad: Tensor) -> bool:
    """Has a fused optimizer on a GPU leave out the step at hand if it is bad; False if it cannot."""
    groups = optimizer.param_groups
    in_parts = any(hasattr(each, "full_tensor") for group in groups for each in group["params"])
    if not _is_behind(is_bad.device) or in_parts or not all(group.get("fused") for group in groups):
        return False
    # what torch.amp.GradScaler tells it in float16
    vars(optimizer)["found_inf"] = is_bad
    return True


def _is_behind(device: torch.device) -> bool:
    """Whether the device may still be at work on what it was given when Python goes on."""
    return device.type == "cuda"


def _on_its_way(value: Tensor) -> tuple[Tensor, Any]:
    """A copy on the CPU, which may still be on its way, and the event that tells when it is there."""
    copy = value.to("cpu", non_blocking=True)
    arrived = torch.get_device_module(value.device).Event()
    arrived.record()
    return copy, arrived


def _first_bad_gradient(module: LightningModule) -> str | None:
    for name, parameter in module.named_parameters():
        if parameter.grad is not None and not local_tensor(parameter.grad).isfinite().all():
            return f"the gradient of {name}"
    return None


def _describe(step: int, losses: list[Tensor], indices: Tensor, gradient: str | None) -> str:
    """What is not finite, where, and with which images."""
    places = [f"the loss is {float(loss)}" for loss in losses if not loss.isfinite()][:1]
    if gradient:
        places.append(f"{gradient} is not finite")
    named = ", ".join(map(str, indices[:_MOST_NAMED].tolist())) + (", ..." if len(indices) > _MOST_NAMED else "")
    return f"step {step + 1}: {' and '.join(places) or 'another process has no finite loss'} (images {named})"
