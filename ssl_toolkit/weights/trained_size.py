"""Image size with which weights were trained, from their header."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ssl_toolkit.weights import read_header


def trained_size(header: Mapping[str, Any]) -> int | None:
    """The side in pixels of the whole images with which weights were trained; None where the header does not say it.

    Args:
        header: Of a weights file (`ssl_toolkit.weights.read_header`).
    """
    config = header.get("config")
    data = config.get("data") if isinstance(config, Mapping) else None
    size = data.get("image_size") if isinstance(data, Mapping) else None
    return size if isinstance(size, int) and not isinstance(size, bool) and size > 0 else None


def size_remark(weights: str | Path, size: int) -> str:
    """What is to be said of the size of images on which weights are used.

    Args:
        weights: The weights file.
        size: The size, in pixels.
    """
    trained = trained_size(read_header(weights))
    if trained is None:
        return (
            f"images of {size} px (the weights do not say which they were trained with; --data.image_size for others)"
        )
    if trained == size:
        return f"images of {size} px, as the weights were trained with"
    theirs = f"--data.image_size {trained} is their size"
    return f"images of {size} px, but the weights were trained with {trained} px; {theirs}"
