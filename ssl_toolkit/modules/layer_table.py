"""Layer table: output sizes, parameters, multiply-adds, receptive fields and memory of a network, without computing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

_BYTES = 4  # of a float32


class Field(NamedTuple):
    """Receptive field of a place of a feature map.

    Attributes:
        height: Pixels of the image that it depends on, at most.
        width: Likewise.
        stride_down: Pixels between the fields of two neighbouring places.
        stride_right: Likewise.
    """

    height: int
    width: int
    stride_down: int
    stride_right: int


class Layer(NamedTuple):
    """A row of the table.

    Attributes:
        name: Of the module in its network.
        kind: What it does: ``Conv2d 3x3, stride 2``.
        output: Its output's shape, without the batch.
        parameters: Of its own.
        multiply_adds: Of one image.
        field: Of its output; None where it depends on the whole image.
    """

    name: str
    kind: str
    output: tuple[int, ...]
    parameters: int
    multiply_adds: int
    field: Field | None


class LayerTable(NamedTuple):
    """The layers of a network in the order in which they compute, and sums over the whole network.

    Attributes:
        layers: Convolutions, pooling and linear layers; what normalises or bends (BatchNorm, ReLU) is in the sums.
        parameters: Of all modules.
        multiply_adds: Of the convolutions and linear layers, of one image.
        activation_bytes: Outputs of all modules for one image in float32, which training keeps for the gradient; what
            overwrites its input (an in-place ReLU) keeps none.
        output: Shape of the network's output, without the batch.
    """

    layers: list[Layer]
    parameters: int
    multiply_adds: int
    activation_bytes: int
    output: tuple[int, ...]


def layer_table(network: nn.Module, image_shape: Sequence[int]) -> LayerTable:
    """Describes a network by running it on the meta device, where nothing is computed.

    A convolution's output has ``floor((H + 2P - D(F - 1) - 1) / S) + 1`` rows; the receptive field grows by
    ``D(F - 1)`` times the product of the strides before it (Araujo, Norris and Sim 2019, "Computing receptive fields of
    convolutional neural networks", equations 1 to 3). Where paths meet, the largest counts.

    Args:
        network: A network of images; it is moved to the meta device and loses its weights.
        image_shape: Channels, height and width.

    Raises:
        ValueError: The network does not take images of this shape.
    """
    network = network.to("meta", torch.float32).eval()
    names = {module: name for name, module in network.named_modules()}
    rows: dict[nn.Module, _Row] = {}
    activations = 0
    handles = []
    mode = _Fields()

    def before(module: nn.Module, _: Any) -> None:
        rows.setdefault(module, _Row())
        mode.counting.append(rows[module])

    def after(module: nn.Module, inputs: Any, output: Any) -> None:
        nonlocal activations
        mode.counting.pop()
        if isinstance(output, Tensor):
            rows[module].output, rows[module].field = tuple(output.shape[1:]), mode.field_of(output)
            given = [each for each in inputs if isinstance(each, Tensor)]
            if not any(each.data_ptr() == output.data_ptr() and each is output for each in given):
                activations += _BYTES * output.numel()

    for module in network.modules():
        if not list(module.children()):
            handles += [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
    image = torch.empty(1, *image_shape, device="meta")
    try:
        with torch.no_grad(), mode:
            mode.begin(image)
            output = network(image)
    except (RuntimeError, ValueError) as error:
        what = str(error).splitlines()[0]
        raise ValueError(f"the network does not take images of {'x'.join(map(str, image_shape))}: {what}") from None
    finally:
        for handle in handles:
            handle.remove()
    layers = [
        Layer(names[module], _kind(module), row.output, _parameters(module), row.multiply_adds, row.field)
        for module, row in rows.items()
        if row.output and (row.multiply_adds or row.pools)
    ]
    total = sum(parameter.numel() for parameter in network.parameters())
    return LayerTable(layers, total, mode.multiply_adds, activations, tuple(output.shape[1:]))


class _Row:
    """What is found out of a module while it computes."""

    def __init__(self) -> None:
        self.output: tuple[int, ...] = ()
        self.field: Field | None = None
        self.multiply_adds = 0
        self.pools = False


class _Fields(TorchDispatchMode):
    """Follows receptive fields through all operations, and counts multiply-adds."""

    def __init__(self) -> None:
        super().__init__()
        self._of: dict[int, tuple[Tensor, Field | None]] = {}  # by id, with the tensor, so that no other gets the id
        self.counting: list[_Row] = []
        self.multiply_adds = 0

    def begin(self, image: Tensor) -> None:
        """The image, each of whose places depends on itself."""
        self._of[id(image)] = image, Field(1, 1, 1, 1)

    def field_of(self, tensor: Tensor) -> Field | None:
        """Of a feature map; None where it depends on the whole image."""
        return self._of[id(tensor)][1] if id(tensor) in self._of else None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        known = [each for each in _tensors(args) if id(each) in self._of]
        if known:
            field = self._after(name, args, known, output)
            for each in _tensors([output]):
                self._of[id(each)] = each, field
        self._count(name, args, output)
        return output

    def _after(self, name: str, args: Any, known: list[Tensor], output: Any) -> Field | None:
        found = [self._of[id(each)][1] for each in known]
        first = next(_tensors([output]))
        if any(field is None for field in found) or name in ("bmm", "_scaled_dot_product_flash_attention"):
            return None
        largest = Field(*(max(numbers) for numbers in zip(*[field for field in found if field], strict=True)))
        if name == "convolution":
            _, weight, _, stride, _, dilation = args[:6]
            return _grown(largest, weight.shape[2:], stride, dilation)
        if name in ("max_pool2d_with_indices", "avg_pool2d"):
            kernel, stride = _pair(args[1]), _pair(args[2] if len(args) > 2 and args[2] else args[1])
            dilation = _pair(args[4]) if name.startswith("max") and len(args) > 4 else (1, 1)
            return _grown(largest, kernel, stride, dilation)
        spread = known[0].ndim == 4 and known[0].shape[2] * known[0].shape[3] > 1
        return None if spread and name in _OVER_PLACES and first.numel() < known[0].numel() else largest

    def _count(self, name: str, args: Any, output: Any) -> None:
        multiply_adds, pools = 0, name in ("max_pool2d_with_indices", "avg_pool2d", "_adaptive_avg_pool2d")
        if name == "convolution":
            multiply_adds = output.numel() * args[1][0].numel()
        elif name in ("mm", "bmm"):
            multiply_adds = output.numel() * args[0].shape[-1]
        elif name == "addmm":
            multiply_adds = output.numel() * args[1].shape[-1]
        self.multiply_adds += multiply_adds
        if self.counting:
            self.counting[-1].multiply_adds += multiply_adds
            self.counting[-1].pools |= pools


_OVER_PLACES = ("mean", "sum", "amax", "_adaptive_avg_pool2d", "adaptive_max_pool2d", "max", "var_mean")


def _grown(field: Field, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> Field:
    """The receptive field after a window of places."""
    steps = [dilated * (size - 1) for size, dilated in zip(kernel, _pair(dilation), strict=True)]
    down, right = _pair(stride)
    return Field(
        field.height + steps[0] * field.stride_down, field.width + steps[1] * field.stride_right,
        field.stride_down * down, field.stride_right * right,
    )  # fmt: skip


def _pair(value: Any) -> Sequence[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values if len(values) == 2 else values * 2


def _tensors(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters(recurse=False))


def _kind(module: nn.Module) -> str:
    """What a module does, in words."""
    name = type(module).__name__
    name = "Conv2d" if isinstance(module, nn.Conv2d) else name
    parts = []
    with contextlib.suppress(AttributeError, TypeError, ValueError):
        own: Any = module
        name += f" {'x'.join(map(str, _pair(own.kernel_size)))}"
        stride = _pair(own.stride)
        parts += [f"stride {stride[0]}"] if max(stride) > 1 else []
        parts += [f"dilation {_pair(own.dilation)[0]}"] if max(_pair(getattr(own, "dilation", 1))) > 1 else []
        parts += [f"{own.groups} groups"] if getattr(own, "groups", 1) > 1 else []
    return ", ".join([name, *parts])
