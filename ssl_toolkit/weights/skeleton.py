"""Skeleton network without memory, from untrusted arguments."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch.nn.modules import module as torch_modules

from ssl_toolkit.modules.backbone import Backbone

# layers without weights (activations, pools, drop-outs, the containers around them) that come with one tensor
_LAYERS_PER_TENSOR = 16
_LAYERS_AT_LEAST = 500
_LAYERS_AT_MOST = 20_000  # the largest networks of timm have a few thousand


class _TooLarge(ValueError):
    pass


def build_skeleton(arguments: dict[str, Any], num_tensors: int) -> Backbone:
    """A `Backbone` whose tensors have shapes and no memory.

    A file may ask for a network of any size. Its weights are never allocated here, and the building ends when it has
    more layers than the tensors of the file can be for.

    Args:
        arguments: Of `Backbone`.
        num_tensors: How many the file holds.

    Raises:
        ValueError: The network is larger than the file.
        Exception: Whatever a network raises of arguments that make no sense.
    """
    most = min(_LAYERS_AT_MOST, _LAYERS_AT_LEAST + _LAYERS_PER_TENSOR * num_tensors)
    with _at_most_layers(most), torch.device("meta"):
        return Backbone(**arguments)


@contextlib.contextmanager
def _at_most_layers(most: int) -> Iterator[None]:
    num = 0

    def count(*_: Any) -> None:
        nonlocal num
        num += 1
        if num > most:
            raise _TooLarge(f"it has more than {most:,} layers, and the file is not of so large a network")

    handle = torch_modules.register_module_module_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()
