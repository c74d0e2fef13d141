"""Reads the header of a weights file, and says what is wrong with a file that is none."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import safetensors

from ssl_toolkit.errors import nearest

FORMAT = 1
METADATA_KEY = "ssl_toolkit"


class WeightsError(ValueError):
    """A weights file that is missing, damaged, of another kind, or for another backbone."""


def read(path: Path) -> dict[str, Any]:
    """The header, checked; raises `WeightsError` for a file that is missing, damaged or of another kind."""
    if not path.is_file():
        raise WeightsError(_missing(path))
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except safetensors.SafetensorError as error:
        raise WeightsError(_not_safetensors(path, error)) from error
    if METADATA_KEY not in metadata:
        raise WeightsError(
            f"{path} is a safetensors file without the header of ssl-toolkit, so it does not say which backbone it is "
            "for; for weights of timm use its name with pretrained: true"
        )
    return _check_header(path, metadata[METADATA_KEY])


def _check_header(path: Path, text: str) -> dict[str, Any]:
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"the header of {path} is damaged: {str(error).splitlines()[0]}") from error
    found = header.get("format") if isinstance(header, dict) else None
    if isinstance(found, int) and found > FORMAT:
        raise WeightsError(
            f"{path} has format {found}, this ssl-toolkit reads format {FORMAT}; update it: pip install -U ssl-toolkit"
        )
    valid = (
        found == FORMAT
        and isinstance(header.get("backbone"), dict)
        and isinstance(header.get("num_features"), int)
        and _is_numbers(header.get("mean"), header["backbone"].get("in_channels"))
        and _is_numbers(header.get("std"), header["backbone"].get("in_channels"))
        and isinstance(header.get("sha256"), str)
    )
    if not valid:
        raise WeightsError(
            f"the header of {path} is damaged: it lacks format, backbone, num_features, mean, std or sha256"
        )
    return header


def _is_numbers(value: Any, length: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == length
        and all(isinstance(item, float | int) and math.isfinite(item) for item in value)
    )


def _missing(path: Path) -> str:
    if path.is_dir():
        return f"{path} is a folder, not a weights file{nearest('backbone.safetensors', _names(path, 'safetensors'))}"
    if not path.parent.is_dir():
        parent = path.parent
        return f"there is no folder {parent}{nearest(parent.name, _names(parent.parent, ''))}"
    return f"there is no file {path}{nearest(path.name, _names(path.parent, ''))}"


def _names(folder: Path, suffix: str) -> list[str]:
    return [entry.name for entry in folder.iterdir() if entry.name.endswith(suffix)] if folder.is_dir() else []


def _not_safetensors(path: Path, error: Exception) -> str:
    with path.open("rb") as file:
        start = file.read(2)
    # the magic numbers of a zip archive and of a pickle, the two ways in which torch.save writes
    if start in (b"PK", b"\x80\x02"):
        return (
            f"{path} is a checkpoint (a pickle), which serves to resume a run and nothing else; "
            "give the backbone.safetensors of its run instead"
        )
    return f"{path} is not a safetensors file, or a damaged one: {str(error).splitlines()[0]}"
