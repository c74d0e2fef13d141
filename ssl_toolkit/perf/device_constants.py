"""Device constants: fixed numbers, kept on a device."""

from __future__ import annotations

import functools

import torch
from torch import Tensor


@functools.cache
def constant(values: tuple[float, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """A tensor of fixed numbers, made once and kept: not to be changed.

    ``torch.tensor(values, device=device)`` in a training step would have the processor wait until a GPU has done all
    that it was given, because the copy of the numbers comes after that.

    Args:
        values: The numbers.
        device: Where the tensor is.
        dtype: Of the tensor.

    Returns:
        Tensor of shape ``[len(values)]``.
    """
    with torch.inference_mode(False):  # what is made in inference mode cannot be used in training
        return torch.tensor(values, device=device, dtype=dtype)
