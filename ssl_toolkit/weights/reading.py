"""Reads the header of a weights file, and says what is wrong with a file that is none."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

from ssl_toolkit.errors import nearest, printable

FORMAT = 1
METADATA_KEY = "ssl_toolkit"
# what the header of a whole network says that it holds; that of a backbone says nothing
MODEL = "model"

# beyond these a header is not that of a network; what its arguments may build, `skeleton.py` limits
_LARGEST_NUMBER = 1 << 16
_LONGEST = 1000
_DEEPEST = 8


class WeightsError(ValueError):
    """A weights file that is missing, damaged, of another kind, or for another backbone."""


def read(path: Path) -> dict[str, Any]:
    """The header of a backbone, checked; `WeightsError` for a file that is missing, damaged or of another kind."""
    header = read_any(path)
    if header.get("holds") == MODEL:
        raise WeightsError(
            f"{path} is the whole network of a downstream run, which serves `ssl-toolkit predict`; give the "
            "backbone.safetensors of its run instead"
        )
    return header


def read_any(path: Path) -> dict[str, Any]:
    """As `read`, of a backbone or of a whole network."""
    if not path.is_file():
        raise WeightsError(_missing(path))
    with opened(path) as file:
        metadata = file.metadata() or {}
    if METADATA_KEY not in metadata:
        raise WeightsError(
            f"{path} is a safetensors file without the header of ssl-toolkit, so it does not say which backbone it is "
            "for; for weights of timm use its name with pretrained: true"
        )
    return _check_header(path, metadata[METADATA_KEY])


def read_layout(path: Path) -> dict[str, str]:
    """Shape and dtype of each tensor, as `layout` describes them, without reading one."""
    with opened(path) as file:
        slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118 - no mapping
        return {key: describe(each.get_shape(), each.get_dtype()) for key, each in slices.items()}


def read_tensors(path: Path, header: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors, every byte of them checked."""
    with opened(path) as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no mapping
    content = {key: value for key, value in header.items() if key != "sha256"}
    if sha256(content, tensors) != header["sha256"]:
        raise WeightsError(f"{path} is damaged: its content does not match its SHA-256; copy it again or write it anew")
    return tensors


def sha256(header: dict[str, Any], tensors: dict[str, Tensor]) -> str:
    """SHA-256 of the header and of name, dtype, shape and bytes of every tensor, in the order of the names."""
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for key in sorted(tensors):
        tensor = tensors[key]
        digest.update(f"\n{key} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def describe(shape: Any, dtype: Any) -> str:
    """A few words for a shape and a dtype; floats of any width count as equal, because loading converts them."""
    name = str(dtype).lower().removeprefix("torch.")
    # safetensors says F32, BF16, I64, U8 where torch says float32, bfloat16, int64, uint8
    if re.match(r"b?f(loat)?\d", name):
        return f"{list(shape)}"
    full = re.sub(r"^(u?)i?(?=[0-9])", r"\1int", name)
    return f"{list(shape)} {full}"


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Any]:
    """The file, opened by safetensors; whatever goes wrong with it is a `WeightsError`."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            yield file
    except WeightsError:
        raise
    except safetensors.SafetensorError as error:
        raise WeightsError(_not_safetensors(path, error)) from error
    # of a damaged file, torch raises what comes first, when it is to make a tensor
    except Exception as error:
        reason = str(error).strip() or type(error).__name__
        raise WeightsError(f"{path} cannot be read: {short(reason)}") from error


@contextlib.contextmanager
def building(path: Path, what: str = "backbone") -> Iterator[None]:
    """Arguments that make no sense fail wherever timm trips over them."""
    try:
        yield
    except WeightsError:
        raise
    except Exception as error:
        reason = str(error).strip() or type(error).__name__
        raise WeightsError(f"cannot build the {what} of {path}: {short(reason)}") from error


def short(text: str) -> str:
    """The first line, and not much of it: an error may repeat what a file holds."""
    first = printable(text.strip().split("\n")[0])
    return first if len(first) <= 300 else first[:297] + "..."


def _check_header(path: Path, text: str) -> dict[str, Any]:
    try:
        header = json.loads(text)
        canonical = json.dumps(header) == text
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"the header of {path} is damaged: {short(str(error))}") from error
    if not canonical:
        # the checksum is of what the text says; of two ways to say the same, one is not as it was written
        raise WeightsError(f"the header of {path} is damaged: it is not as ssl-toolkit writes it")
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
        and isinstance(header["backbone"].get("name"), str)
        and isinstance(header["backbone"].get("kwargs"), dict | None)
    )
    if not valid:
        raise WeightsError(
            f"the header of {path} is damaged: it lacks format, backbone, num_features, mean, std or sha256"
        )
    problem = _beyond_reason(header["backbone"])
    if problem:
        raise WeightsError(f"the header of {path} is not one of a backbone: it holds {problem}")
    return header


def _beyond_reason(value: Any, depth: int = 0) -> str | None:
    """What no network has as an argument, and what could take all memory before a network is there to compare."""
    if isinstance(value, dict | list | str) and len(value) > _LONGEST:
        return f"a {type(value).__name__} of length {len(value):,}"
    if isinstance(value, dict | list):
        if depth == _DEEPEST:
            return f"more than {_DEEPEST} lists in each other"
        each = value.values() if isinstance(value, dict) else value
        return next(filter(None, (_beyond_reason(item, depth + 1) for item in each)), None)
    if isinstance(value, int | float) and not abs(value) <= _LARGEST_NUMBER:
        return f"the number {str(value)[:20]}"
    return None


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
    return f"{path} is not a safetensors file, or a damaged one: {short(str(error))}"
