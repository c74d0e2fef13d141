"""Weight export for other programs: plain timm, plain torchvision, and ONNX."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import safetensors.torch
import torch
import torchvision
from timm.models import is_model_in_modules
from torch import Tensor

from ssl_toolkit.errors import nearest
from ssl_toolkit.io.atomic import write_atomically
from ssl_toolkit.modules.backbone import Backbone
from ssl_toolkit.modules.timm_network import OWN_FAMILIES
from ssl_toolkit.weights import load_backbone
from ssl_toolkit.weights.model_graph import check_onnx

# Networks that torchvision builds with the same layers and the same names of weights as timm does.
TORCHVISION_NETWORKS = (
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "resnext50_32x4d",
    "resnext101_32x8d",
    "resnext101_64x4d",
    "wide_resnet50_2",
    "wide_resnet101_2",
)


def export(weights: str, format: Literal["timm", "torchvision", "onnx"], out: str) -> Path:
    """Converts a weights file for programs that do not know ssl-toolkit.

    ``timm``: a safetensors file for ``timm.create_model(NAME, num_classes=0, checkpoint_path=FILE, ...)``; beside it a
    JSON file with the same stem names the architecture, its arguments, mean and standard deviation. As ``config.json``
    and ``model.safetensors`` in a folder the two are a model for ``timm.create_model("local-dir:FOLDER")``.

    ``torchvision``: the state dict of torchvision's ResNet of the same name, without its classifier ``fc``: a ``.pth``
    file of tensors (``torch.load(FILE, weights_only=True)``) or a ``.safetensors`` file. Load it with
    ``model.fc = torch.nn.Identity()``. Images are to be normalised with the mean and the standard deviation of the
    weights file's header (those of ImageNet, for most networks).

    ``onnx``: a graph from ``images`` (float32 of shape [batch, channels, height, width], values in [0, 1], any batch
    and any size; normalisation is part of the graph) to ``features`` (float32 of shape [batch, num_features]).

    Of a run of transfer the command takes the ``model.safetensors``, too, with the format ``onnx``: backbone and head,
    from ``images`` (uint8 of shape [batch, height, width, channels] at the trained size; resizing is not part of the
    graph) to ``logits`` and ``probabilities``, or ``outputs`` and ``predictions`` of targets. Of a head that reads
    covariates the graph has a second input, ``covariates`` (float32 of shape [batch, covariates], NaN for unknown).

    A backbone with a chosen `norm` or with `weight_standardization` exports as ``onnx`` only.
    A network that this project adds to timm's registry (``resnet9``, ``lenet5``, ...) exports as ``onnx`` only, too.

    With a small or middle stem, timm's and torchvision's network needs its first convolution and pooling replaced
    before loading, as the documentation of `ssl_toolkit.modules.backbone` shows.

    Args:
        weights: The weights file (``backbone.safetensors``); on the command line also a run's ``model.safetensors``.
        format: For which program.
        out: The file to write; it must not exist.

    Returns:
        The path of the written file.

    Raises:
        ValueError: For a wrong weights file, a file that exists, a suffix or an architecture that the format does not
            have, and for missing ONNX packages.
    """
    formats: dict[str, Callable[[Backbone, Path], None]] = {
        "timm": _export_timm,
        "torchvision": _export_torchvision,
        "onnx": _export_onnx,
    }
    if format not in formats:
        raise ValueError(f"there is no export format {format!r}, only {', '.join(formats)}{nearest(format, formats)}")
    path = check_out(out, format)
    backbone = load_backbone(weights).eval()
    if format != "onnx" and (backbone.norm != "own" or backbone.weight_standardization):
        raise ValueError(
            f"plain {format} has no {backbone.name} with norm={backbone.norm!r}, "
            f"weight_standardization={backbone.weight_standardization}; export it as onnx"
        )
    if format != "onnx" and is_model_in_modules(backbone.name, OWN_FAMILIES):
        raise ValueError(
            f"plain {format} cannot load {backbone.name!r}, which only ssl-toolkit knows; export it as onnx, or load "
            "its weights file by ssl_toolkit.load_backbone"
        )
    formats[format](backbone, path)
    return path


def check_out(out: str, format: Literal["timm", "torchvision", "onnx"]) -> Path:
    """The file to write.

    Raises:
        ValueError: It has another suffix than those of the format, or exists.
    """
    path = Path(out)
    suffixes = {"timm": (".safetensors",), "torchvision": (".pth", ".safetensors"), "onnx": (".onnx",)}[format]
    if path.suffix not in suffixes:
        raise ValueError(f"the format {format} writes a file that ends with {' or '.join(suffixes)}, got {path.name}")
    for file in (path, path.with_suffix(".json")) if format == "timm" else (path,):
        if file.exists():
            raise ValueError(f"{file} exists and is not overwritten; delete it or choose another name for --out")
    return path


def _export_timm(backbone: Backbone, path: Path) -> None:
    # the schema of config.json in timm's models on the Hugging Face hub
    description = {
        "architecture": backbone.name.partition(".")[0],
        "num_classes": 0,
        "num_features": backbone.num_features,
        "model_args": {"in_chans": backbone.in_channels, **backbone.kwargs},
        "pretrained_cfg": {"mean": backbone.mean, "std": backbone.std, "num_classes": 0},
        "stem": backbone.stem,
    }
    write_atomically(path.with_suffix(".json"), json.dumps(description, indent=2))
    write_atomically(path, safetensors.torch.save(_tensors(backbone)))


def _export_torchvision(backbone: Backbone, path: Path) -> None:
    name, tensors = backbone.name.partition(".")[0], _tensors(backbone)
    if name not in TORCHVISION_NETWORKS:
        raise ValueError(
            f"torchvision has no network with the layers of timm's {name!r}, only of "
            f"{', '.join(TORCHVISION_NETWORKS)}; export it as timm or onnx"
        )
    with torch.device("meta"):
        model = torchvision.models.get_model(name, weights=None)
    shapes = {key: tensor.shape for key, tensor in model.state_dict().items() if not key.startswith("fc.")}
    if backbone.stem != "standard":
        shapes["conv1.weight"] = torch.Size((64, 3, 3, 3))
    if {key: tensor.shape for key, tensor in tensors.items()} != shapes:
        raise ValueError(
            f"this {name} is not torchvision's: in_channels={backbone.in_channels} or its arguments {backbone.kwargs} "
            "give other weights; export it as timm or onnx"
        )
    if path.suffix == ".safetensors":
        content = safetensors.torch.save(tensors)
    else:
        buffer = io.BytesIO()
        torch.save(tensors, buffer)
        content = buffer.getvalue()
    write_atomically(path, content)


def _export_onnx(backbone: Backbone, path: Path) -> None:
    check_onnx()
    example = torch.rand(2, backbone.in_channels, 64, 96)
    axes = {axis: torch.export.Dim(name) for axis, name in ((0, "batch"), (2, "height"), (3, "width"))}
    program = torch.onnx.export(
        backbone,
        (example,),
        input_names=["images"],
        output_names=["features"],
        dynamic_shapes={"x": axes},
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    write_atomically(path, program.model_proto.SerializeToString())


def _tensors(backbone: Backbone) -> dict[str, Tensor]:
    return {key: tensor.clone() for key, tensor in backbone.model.state_dict().items()}
