"""CUDA prefetch: copies batches to a GPU while it computes others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Sent(NamedTuple):
    """A batch whose copy is under way.

    Attributes:
        batch: Its tensors are those of the device, but may not have arrived yet.
        arrived: The event that tells.
    """

    batch: Any
    arrived: Any


class DeviceCopies:
    """CUDA prefetcher: copies batches to a device by way of pinned memory, on a separate stream.

    So a copy waits for nothing that the device is doing, and the device does not wait for the copy. `send` may run in
    another thread than `receive`.

    Args:
        device: A GPU. (With the CPU all of it does nothing, which is good for tests.)
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._is_gpu = device.type == "cuda"
        self._streams: Any = torch.cuda if self._is_gpu else torch.cpu
        self._stream = torch.cuda.Stream(device) if self._is_gpu else torch.cpu.Stream()

    def send(self, batch: Any) -> Sent:
        """Begins to copy the tensors of a batch (a tuple with names, with tensors or such tuples in it)."""
        with self._streams.stream(self._stream):
            return Sent(_each_tensor(self._copy, batch), self._stream.record_event())

    def receive(self, sent: Sent) -> Any:
        """The batch, for operations on the current stream: they wait for it, the caller does not."""
        stream = self._streams.current_stream(self._device)
        stream.wait_event(sent.arrived)
        if self._is_gpu:

            def keep(tensor: Tensor) -> Tensor:
                # its memory belongs to the other stream, which would reuse it while this one still reads it
                tensor.record_stream(stream)
                return tensor

            _each_tensor(keep, sent.batch)
        return sent.batch

    def _copy(self, tensor: Tensor) -> Tensor:
        return (tensor.pin_memory() if self._is_gpu else tensor).to(self._device, non_blocking=True)


def _each_tensor(change: Callable[[Tensor], Tensor], batch: Any) -> Any:
    if isinstance(batch, Tensor):
        return change(batch)
    return type(batch)(*(_each_tensor(change, each) for each in batch)) if isinstance(batch, tuple) else batch
