"""Frame files: which of them form a sequence, and the frames in a file with a tensor."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor

from ssl_toolkit.data.decode import not_its_fault
from ssl_toolkit.data.limits import MAX_PIXELS
from ssl_toolkit.data.sources import LabelKind
from ssl_toolkit.io.archives import check_not_compressed
from ssl_toolkit.io.atomic import open_plain

TENSOR_SUFFIXES = frozenset({".npy", ".pt", ".safetensors"})


class Frame(NamedTuple):
    """One frame: an image file, or a place in a file with a tensor.

    Attributes:
        file: Path relative to the folder of the data.
        place: Number of the frame in the tensor; -1 for an image file.
    """

    file: str
    place: int


class WrongTensor(ValueError):
    """A file that is sound but holds something else than frames."""


class TensorFile:
    """A file with the frames of one sequence, read one by one.

    Raises:
        ValueError: It does not hold a uint8 tensor ``[frames, height, width, channels]``, or claims to hold more bytes
            than it has.
    """

    def __init__(self, path: Path) -> None:
        with open_plain(path) as plain:  # to open a pipe would wait for ever
            num_bytes = plain.seek(0, os.SEEK_END)
        self._array: Any
        if path.suffix.lower() == ".npy":
            self._array = np.load(path, mmap_mode="r", allow_pickle=False)
            shape, kind = list(self._array.shape), str(self._array.dtype)
        elif path.suffix.lower() == ".pt":
            check_not_compressed(path)
            loaded = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
            if not isinstance(loaded, Tensor):
                raise WrongTensor(f"'{path}' holds a {type(loaded).__name__}, expected one tensor")
            self._array = loaded
            shape, kind = list(loaded.shape), str(loaded.dtype).removeprefix("torch.")
        else:
            file = safe_open(path, framework="numpy")
            keys = list(file.keys())
            if len(keys) != 1:
                raise WrongTensor(f"'{path}' holds {len(keys)} tensors, expected one")
            self._array = file.get_slice(keys[0])
            shape, kind = self._array.get_shape(), self._array.get_dtype().replace("U8", "uint8")
        if kind != "uint8" or len(shape) != 4 or shape[3] not in (1, 3, 4):
            raise WrongTensor(
                f"'{path}' holds {kind} {shape}, expected uint8 [frames, height, width, 1, 3 or 4 channels]"
            )
        # a tensor may repeat its bytes, and frames without pixels take none: there may be any number of them
        if math.prod(shape) > num_bytes or (shape[0] and not shape[1] * shape[2]):
            raise ValueError(f"'{path}' claims frames of {shape} in {num_bytes} bytes")
        if shape[1] * shape[2] > MAX_PIXELS:
            raise ValueError(f"frames of more than {MAX_PIXELS // 2**20} million pixels")
        if isinstance(self._array, Tensor):
            self._array = self._array.numpy()
        self.num_frames: int = shape[0]

    def frame(self, place: int) -> NDArray[np.uint8]:
        """One frame: uint8 array of shape ``[height, width, channels]``."""
        return np.array(self._array[place : place + 1], dtype=np.uint8)[0]


def natural_key(name: str) -> list[str | int]:
    """Natural sort key: ``frame_9`` comes before ``frame_10``."""
    return [int(part) if place % 2 else part for place, part in enumerate(re.split(r"(\d+)", name))]


def group_frames(root: Path, files: Sequence[str], labels: LabelKind) -> dict[str, list[Frame]]:
    """The frames of each sequence, in the natural order of the file names.

    Args:
        root: The folder of the data.
        files: Paths of image files and tensor files, relative to it.
        labels: With "folder" a sequence must lie in the folder of a class.

    Raises:
        ValueError: A file lies where it is no part of a sequence, or a tensor is not one of frames.
    """
    sequences: dict[str, list[Frame]] = {}
    wrong: list[WrongTensor] = []
    num_tensors = 0
    for file in sorted(files, key=natural_key):
        is_tensor = Path(file).suffix.lower() in TENSOR_SUFFIXES
        name = file if is_tensor else file.rpartition("/")[0]
        if not name or (labels == "folder" and "/" not in name):
            form = "class/sequence/frame.jpg or class/sequence.npy" if labels == "folder" else "sequence/frame.jpg"
            raise ValueError(f"'{file}' in '{root}' is not part of a sequence; the files must lie as {form}")
        frames = _tensor_frames(root, file, wrong) if is_tensor else [Frame(file, -1)]
        sequences.setdefault(name, []).extend(frames)
        num_tensors += is_tensor
    if wrong and len(wrong) == num_tensors:
        raise wrong[0]  # not damage here and there, but data of another kind
    return sequences


def _tensor_frames(root: Path, file: str, wrong: list[WrongTensor]) -> list[Frame]:
    num_frames = 1  # of a file that cannot be read: reading it will say what is wrong, and counts it with the bad ones
    try:
        num_frames = TensorFile(root / file).num_frames
    except WrongTensor as error:
        wrong.append(error)
    except Exception as error:
        if not_its_fault(error):
            raise
    return [Frame(file, place) for place in range(max(1, num_frames))]
