"""Writes a weights file: tensors, and a header from which the network is rebuilt."""

from __future__ import annotations

import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from ssl_toolkit.io.atomic import write_atomically
from ssl_toolkit.modules.backbone import Backbone
from ssl_toolkit.weights.reading import FORMAT, METADATA_KEY, WeightsError, sha256


def write(path: Path, backbone: Backbone, tensors: dict[str, Tensor], header: dict[str, Any]) -> None:
    """Writes a weights file, whole or not at all.

    Args:
        path: The file; an older one is replaced.
        backbone: What the header describes.
        tensors: What is saved. Floats of any width are saved as float32.
        header: What else the file shall say, plain data only.

    Raises:
        WeightsError: If a weight is not finite (a file that exists is then kept), or if the header is not plain data.
    """
    tensors = {key: _as_saved(tensor) for key, tensor in tensors.items()}
    broken = [key for key, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise WeightsError(
            f"not saved to {path}: {len(broken)} of {len(tensors)} tensors are not finite, the first is {broken[0]}"
        )
    full = {
        **header,
        "format": FORMAT,
        "backbone": backbone.config(),
        "num_features": backbone.num_features,
        "mean": list(backbone.mean),
        "std": list(backbone.std),
        "versions": {name: version(name) for name in ("ssl-toolkit", "torch", "timm")}
        | {"python": platform.python_version()},
    }
    try:
        full = json.loads(json.dumps(full))
    except (TypeError, ValueError) as error:
        raise WeightsError(f"the header of {path} must be numbers, strings, lists and dicts: {error}") from error
    full["sha256"] = sha256(full, tensors)
    write_atomically(path, safetensors.torch.save(tensors, metadata={METADATA_KEY: json.dumps(full)}))


def _as_saved(tensor: Tensor) -> Tensor:
    tensor = tensor.detach().to("cpu", torch.float32 if tensor.is_floating_point() else tensor.dtype)
    return tensor.contiguous().clone()  # safetensors takes neither strides (channels_last) nor shared memory
