"""Networks from untrusted arguments: a skeleton without memory, and a network no larger than its file."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as torch_modules

from ssl_toolkit.modules.backbone import Backbone

# layers without weights (activations, pools, drop-outs, the containers around them) that come with one tensor
_LAYERS_PER_TENSOR = 16
_LAYERS_AT_LEAST = 500
# parameters that are made and then replaced or copied, beside those that a file holds
_BYTES_PER_BYTE = 4
_BYTES_AT_LEAST = 1 << 24
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
    with _at_most_layers(_most_layers(num_tensors)), torch.device("meta"):
        return Backbone(**arguments)


@contextlib.contextmanager
def no_larger_than(num_tensors: int, num_bytes: int) -> Iterator[None]:
    """Ends the building of a network in memory, within the context, when it becomes larger than its file.

    Memory that a parameter asks for is taken when it is first written, and so not by one that is refused here.

    Args:
        num_tensors: How many the file holds.
        num_bytes: Of the file.

    Raises:
        ValueError: The network is larger than the file.
    """
    most, total = _BYTES_AT_LEAST + _BYTES_PER_BYTE * num_bytes, 0

    def count(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal total
        total += 0 if parameter is None else parameter.numel() * parameter.element_size()
        if total > most:
            raise _TooLarge(f"its parameters take more than {most:,} bytes, and the file is not of so large a network")

    handle = torch_modules.register_module_parameter_registration_hook(count)
    try:
        with _at_most_layers(_most_layers(num_tensors)):
            yield
    finally:
        handle.remove()


def _most_layers(num_tensors: int) -> int:
    return min(_LAYERS_AT_MOST, _LAYERS_AT_LEAST + _LAYERS_PER_TENSOR * num_tensors)


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
