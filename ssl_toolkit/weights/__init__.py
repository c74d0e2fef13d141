"""Weights files (``backbone.safetensors``): saved by pretraining, loaded by everything after it.

A weights file is a safetensors file. Its keys are those of the timm network, so plain timm loads it too. Its metadata
hold one JSON text under ``"ssl_toolkit"``, the header, which holds data only: how to build the backbone, how to
normalise images, and where the weights come from. A SHA-256 of the header and the tensors is checked on loading.
Nothing is ever unpickled.

    save_backbone("backbone.safetensors", backbone, {"pretext": "simclr", "step": 1000})
    backbone = load_backbone("backbone.safetensors")
    print(load_into(backbone, "backbone.safetensors"))        # 60 of 60 tensors loaded from backbone.safetensors
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from ssl_toolkit.modules.backbone import Backbone
from ssl_toolkit.weights.fit import check_fit
from ssl_toolkit.weights.reading import WeightsError, building, read, read_layout, read_tensors
from ssl_toolkit.weights.skeleton import build_skeleton
from ssl_toolkit.weights.writing import write

__all__ = [
    "LoadReport",
    "WeightsError",
    "load_backbone",
    "load_into",
    "read_header",
    "save_backbone",
]


class LoadReport(NamedTuple):
    """What was loaded: ``str(report)`` is ``"60 of 60 tensors loaded from runs/birds/backbone.safetensors"``."""

    num_loaded: int
    num_total: int
    path: Path

    def __str__(self) -> str:
        return f"{self.num_loaded} of {self.num_total} tensors loaded from {self.path}"


def save_backbone(
    path: str | Path,
    backbone: Backbone,
    header: dict[str, Any] | None = None,
    tensors: dict[str, Tensor] | None = None,
) -> None:
    """Writes a weights file, whole or not at all: a reader never sees half of it, nor does a crash leave one.

    Args:
        path: The file; an older one is replaced.
        backbone: What to save. Floats of any width are saved as float32.
        header: What else the file shall say: ``pretext``, ``step``, ``config`` and the like, plain data only.
        tensors: The state dict of ``backbone.model``, where it is not at hand there.

    Raises:
        WeightsError: If a weight is not finite (a file that exists is then kept), or if the header is not plain data.
    """
    write(Path(path), backbone, backbone.model.state_dict() if tensors is None else tensors, header or {})


def read_header(path: str | Path) -> dict[str, Any]:
    """The header of a weights file, without its tensors.

    Returns:
        A dict with at least ``format``, ``backbone`` (the arguments of `Backbone`), ``num_features``, ``mean``,
        ``std``, ``versions`` and ``sha256``, and with what `save_backbone` was given.

    Raises:
        WeightsError: If there is no such file, or if it is not a weights file that this version reads.
    """
    return read(Path(path))


def load_backbone(path: str | Path) -> Backbone:
    """Builds the backbone that a weights file holds, on the CPU, in training mode.

    Raises:
        WeightsError: As for `read_header`; if a byte of the file was changed; or if this version of timm builds
            another network from the header.
    """
    path = Path(path)
    header, layout = read(path), read_layout(path)
    arguments = header["backbone"] | {"pretrained": False}
    with building(path):
        # first without memory: a hostile header may ask for a network of any size
        check_fit(path, header, layout, build_skeleton(arguments, len(layout)))
    tensors = read_tensors(path, header)
    with building(path):
        backbone = Backbone(**arguments)
        _fill(backbone, header, tensors)
    return backbone


def load_into(backbone: Backbone, path: str | Path) -> LoadReport:
    """Loads a weights file into a backbone of the same network: every tensor or none.

    The backbone takes over the mean and standard deviation of the file as well.

    Args:
        backbone: The backbone to fill; its device and dtype stay.
        path: The weights file.

    Raises:
        WeightsError: As for `read_header`; if a byte of the file was changed; or if the backbone is another network.
            The message then lists what only the file has (``-``) and what only the backbone has (``+``).
    """
    path = Path(path)
    header = read(path)
    check_fit(path, header, read_layout(path), backbone)
    tensors = read_tensors(path, header)
    with building(path):
        _fill(backbone, header, tensors)
    return LoadReport(len(tensors), len(backbone.model.state_dict()), path)


def _fill(backbone: Backbone, header: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    backbone.model.load_state_dict(tensors, strict=True)
    backbone.set_normalization(tuple(header["mean"]), tuple(header["std"]))
