"""Feature extraction from a frozen backbone."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor, nn

from ssl_toolkit.batch import Batch
from ssl_toolkit.errors import nearest
from ssl_toolkit.perf.bfloat16 import has_native_bf16
from ssl_toolkit.random import sample_keys

if TYPE_CHECKING:
    from ssl_toolkit.augment import View
    from ssl_toolkit.modules.backbone import Backbone

Precision = Literal["auto", "32", "bf16"]
_PRECISIONS = ("auto", "32", "bf16")


class Features(NamedTuple):
    """The features of the images of one loader, in the loader's order.

    Attributes:
        features: float32 tensors on the CPU, each of shape ``[num_images, channels]``, by name: ``pooled`` is the
            backbone's output; with ``stages=True`` the averaged map of each stage stands beside it.
        labels: int64 tensor of shape ``[num_images]``: class numbers, -1 where there is no label.
        indices: int64 tensor of shape ``[num_images]``: the place of each image in its source.
        seconds: Wall-clock time of the extraction.
    """

    features: dict[str, Tensor]
    labels: Tensor
    indices: Tensor
    seconds: float


def extract_features(
    backbone: Backbone,
    loader: Iterable[Batch],
    view: View,
    *,
    stages: bool = False,
    precision: Precision = "auto",
    device: torch.device | str | None = None,
    count: Callable[[int], None] = lambda num: None,
) -> Features:
    """Feature extraction: runs a backbone in evaluation mode over all images of a loader.

    The backbone is left as it was: no gradient, no change of the statistics of batch norm, every submodule's training
    flag restored, no random number drawn from a global generator.

    Args:
        backbone: The backbone.
        loader: Batches of images.
        view: What the backbone sees of each image, usually a `CenterView`.
        stages: Also return the globally averaged map of each stage.
        precision: ``32``; ``bf16`` (autocast); or ``auto``: bf16 where the device computes in it natively, else 32.
        device: Where to compute; None for the backbone's own device. The backbone stays where it is, so any other
            device is an error.
        count: Called with the number of images of each batch when its features are there.

    Returns:
        The features, labels and indices of all images.

    Raises:
        ValueError: If the loader has no images, the precision is unknown, or the backbone is on another device.
    """
    own_device = next(backbone.parameters()).device
    if device is not None and torch.zeros(0, device=device).device != own_device:
        raise ValueError(f"features were asked for on {device}, but the backbone is on {own_device}: move it first")
    bf16 = computes_in_bf16(precision, own_device)

    start = time.perf_counter()
    chunks: dict[str, list[Tensor]] = {}
    labels, indices = [], []
    autocast = torch.autocast(own_device.type, dtype=torch.bfloat16, enabled=bf16)
    with evaluation_mode(backbone), torch.inference_mode(), autocast:
        for x, batch in views(loader, view, own_device):
            outputs = backbone.stage_features(x) if stages else {"pooled": backbone(x)}
            for name, output in outputs.items():
                chunks.setdefault(name, []).append(output.float().cpu())
            labels.append(batch.labels.cpu())
            count(len(batch.labels))
            indices.append(batch.indices.cpu())
    if not labels:
        raise ValueError("no features to extract: the loader has no images; check the size of the split")
    return Features(
        # clones: tensors made in inference mode could not be used by autograd later
        {name: torch.cat(parts).clone() for name, parts in chunks.items()},
        torch.cat(labels),
        torch.cat(indices),
        time.perf_counter() - start,
    )


def views(loader: Iterable[Batch], view: View, device: torch.device) -> Iterator[tuple[Tensor, Batch]]:
    """What the backbone sees of each batch: float32 tensors ``[batch, channels, height, width]``, channels last."""
    for batch in loader:
        images = type(batch.images)(*(tensor.to(device, non_blocking=True) for tensor in batch.images))
        keys = sample_keys(0, 0, batch.indices.to(device))
        yield view(images, keys).to(memory_format=torch.channels_last), batch


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Puts a module into evaluation mode and afterwards gives each submodule its own training flag back."""
    flags = [(submodule, submodule.training) for submodule in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for submodule, flag in flags:
            submodule.training = flag


def computes_in_bf16(precision: Precision, device: torch.device) -> bool:
    """Whether a precision (see `extract_features`) means bfloat16 on a device.

    Raises:
        ValueError: The precision is unknown.
    """
    if precision not in _PRECISIONS:
        raise ValueError(
            f"precision is one of {', '.join(_PRECISIONS)}, got {precision!r}{nearest(precision, _PRECISIONS)}"
        )
    return precision == "bf16" or (precision == "auto" and has_native_bf16(device))


def chosen_device(name: str | None) -> torch.device:
    """The device to compute on; by default the GPU if there is one.

    Raises:
        ValueError: It is none of torch's, or not there.
    """
    available = ["cpu"] + ["cuda"] * torch.cuda.is_available()
    try:
        return torch.zeros(0, device=name or available[-1]).device
    except (RuntimeError, AssertionError):  # the latter from a torch built without it
        raise ValueError(f"--device is {name!r}, but this machine has {' and '.join(available)}") from None
