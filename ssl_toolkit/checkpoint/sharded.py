"""Sharded checkpoints, of runs with FSDP: a folder to which each process writes its shards.

Written by torch.distributed.checkpoint, and read by it into any number of shards, whole tensors included. Its own
description of the shards is a pickle, which other programs may want; it is never read here. What is read is the same
description as plain data, in a file that holds everything but the large tensors.
"""

from __future__ import annotations

import io
import os
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)

from ssl_toolkit.checkpoint.shards import check_description
from ssl_toolkit.distributed.ranks import from_rank_zero, rank, world_size
from ssl_toolkit.io.archives import check_not_compressed
from ssl_toolkit.io.atomic import SUMS, checksums, flush_folder, remove_orphans, remove_with_checksum, write_atomically

# all that is not a tensor, and where each tensor's shards are
_REST = "rest.pt"


def save(path: Path, checkpoint: dict[str, Any], names: list[list[str]]) -> str | None:
    """Saves a checkpoint; every process of a run has to call it.

    The folder appears with all of its files and their checksums, flushed to the disk, or not at all.

    Args:
        path: The folder; what was there is replaced.
        checkpoint: As Lightning makes it; tensors may be sharded (DTensor).
        names: For each optimizer, the name of each parameter, in the order of the optimizer's groups.

    Returns:
        Why nothing could be written, the same in every process; None if all is well.
    """
    partial = path.with_name(f".{path.name}.partial")
    problem = from_rank_zero(_prepare(partial) if rank() == 0 else None)
    problem = problem or _write(partial, path, checkpoint, names)
    if problem and rank() == 0:
        shutil.rmtree(partial, ignore_errors=True)
    return problem


def load(path: Path, dtensors: Mapping[str, Tensor] | None = None) -> dict[str, Any]:
    """Loads a checkpoint as Lightning makes it.

    Args:
        path: The folder.
        dtensors: Sharded parameters (DTensor), by their names: their values, and what an optimizer keeps for each of
            them, are loaded into such shards of the same size; whatever is not here is loaded whole.
    """
    check_not_compressed(path / _REST)
    rest = torch.load(path / _REST, map_location="cpu", weights_only=True)
    check_description(rest, path)
    described, names = rest["tensors"], rest["names"]
    targets: dict[str, Any] = {}
    for key, each in described.items():
        like = (dtensors or {}).get(_parameter(key, names))
        if like is not None and list(like.shape) == each["size"]:
            targets[key] = torch.empty_like(like.detach(), dtype=each["dtype"])
        else:
            targets[key] = torch.empty(each["size"], dtype=each["dtype"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # each process knows what to read
        dcp.load(targets, storage_reader=_Reader(path, described), no_dist=True)
    checkpoint = rest["checkpoint"]
    for key, tensor in targets.items():
        place, last = _place(checkpoint, key)
        place[last] = tensor
    return checkpoint


class _Writer(dcp.FileSystemWriter):
    """Notes as plain data where each shard of each tensor is.

    Attributes:
        described: Of each tensor by its key, in the process that coordinates: its dtype, its size, its shards (the key
            in the file is "parts").
    """

    described: dict[str, Any]

    def finish(self, metadata: Metadata, results: list[list[Any]]) -> None:
        """Writes the description for other programs, and notes it."""
        super().finish(metadata, results)
        places = {each.index: each.storage_data for written in results for each in written}
        self.described = {}
        for key, tensor in metadata.state_dict_metadata.items():
            assert isinstance(tensor, TensorStorageMetadata)
            shards = []
            for chunk in tensor.chunks:
                place = places[MetadataIndex(key, chunk.offsets)]
                found = [place.relative_path, place.offset, place.length]
                shards.append([list(chunk.offsets), list(chunk.sizes), *found])
            self.described[key] = {"dtype": tensor.properties.dtype, "size": list(tensor.size), "parts": shards}


class _Reader(dcp.FileSystemReader):
    """Knows where the shards are from plain data."""

    def __init__(self, path: Path, described: dict[str, Any]) -> None:
        super().__init__(path)
        self._described = described

    def read_metadata(self, *_: Any, **__: Any) -> Metadata:
        """What torch would otherwise unpickle."""
        tensors, places = {}, {}
        for key, each in self._described.items():
            chunks = []
            for offsets, sizes, file, start, length in each["parts"]:
                chunks.append(ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes)))
                places[MetadataIndex(key, torch.Size(offsets))] = _StorageInfo(file, start, length)
            properties = TensorProperties(dtype=each["dtype"])
            tensors[key] = TensorStorageMetadata(properties, torch.Size(each["size"]), chunks)
        return Metadata(
            tensors, planner_data={key: (key,) for key in tensors}, storage_data=places,
            storage_meta=StorageMeta(load_id=self.load_id),
        )  # fmt: skip


def _write(partial: Path, path: Path, checkpoint: dict[str, Any], names: list[list[str]]) -> str | None:
    """Writes the shards, and then the rest; returns why not, if that fails."""
    tensors, rest = _split(checkpoint)
    writer = _Writer(partial)
    try:
        # of what is about to change in torch
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dcp.save(tensors, storage_writer=writer, no_dist=world_size() == 1)
    except dcp.CheckpointException as error:  # pyright: ignore[reportAttributeAccessIssue]
        failures = [failure for failure, _ in error.failures.values()]
        if not all(isinstance(each, (OSError, RuntimeError)) for each in failures):
            raise RuntimeError(f"could not save {path}") from failures[0]
        return from_rank_zero(_problem(failures[0]))
    sums = _from_all(_sums(partial, f"__{rank()}_*"))
    problem = next((each for each in sums if isinstance(each, str)), None)
    if problem is None and rank() == 0:
        rest.update(tensors=writer.described, names=names)
        problem = _finish(partial, path, rest, {name: each for own in sums for name, each in own.items()})
    return from_rank_zero(problem)


def _split(checkpoint: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of the model and of the optimizers, by keys that say where they belong, and the rest."""
    tensors = {f"state_dict/{name}": tensor for name, tensor in checkpoint["state_dict"].items()}
    optimizers = []
    for index, optimizer in enumerate(checkpoint.get("optimizer_states", [])):
        state: dict[int, dict[str, Any]] = {}
        for number, values in optimizer["state"].items():
            state[number] = {name: value for name, value in values.items() if not isinstance(value, Tensor)}
            for name in values.keys() - state[number].keys():
                tensors[f"optimizer_states/{index}/{number}/{name}"] = values[name]
        optimizers.append({**optimizer, "state": state})
    return tensors, {"checkpoint": {**checkpoint, "state_dict": {}, "optimizer_states": optimizers}}


def _place(checkpoint: dict[str, Any], key: str) -> tuple[dict[str, Any], str]:
    """Where a tensor belongs: a dictionary, and the key in it."""
    where, _, name = key.partition("/")
    if where == "state_dict":
        return checkpoint["state_dict"], name
    index, number, name = name.split("/", 2)
    return checkpoint["optimizer_states"][int(index)]["state"][int(number)], name


def _parameter(key: str, names: list[list[str]]) -> str:
    """The parameter to which a tensor belongs."""
    where, _, name = key.partition("/")
    if where == "state_dict":
        return name
    index, number, _ = name.split("/", 2)
    return names[int(index)][int(number)]


def _prepare(partial: Path) -> str | None:
    try:
        partial.parent.mkdir(parents=True, exist_ok=True)
        remove_orphans(partial.parent)
        partial.mkdir()
    except OSError as error:
        return _problem(error)
    return None


def _sums(folder: Path, pattern: str) -> dict[str, str] | str:
    """The checksums of files, or why they could not be read."""
    try:
        return checksums(folder, pattern)
    except OSError as error:
        return _problem(error)


def _finish(partial: Path, path: Path, rest: dict[str, Any], sums: dict[str, str]) -> str | None:
    """Writes what is missing, and moves the folder to its place."""
    buffer = io.BytesIO()
    torch.save(rest, buffer)
    try:
        write_atomically(partial / _REST, buffer.getvalue())
        for name in (".metadata", _REST):
            sums |= checksums(partial, name)
        write_atomically(partial / SUMS, "".join(f"{each}  {name}\n" for name, each in sorted(sums.items())))
        flush_folder(partial)
        if path.exists():
            remove_with_checksum(path)
        partial.rename(path)
        flush_folder(path.parent)
    except OSError as error:
        return _problem(error)
    return None


def _from_all(value: Any) -> list[Any]:
    """What each process has for this value."""
    if world_size() == 1:
        return [value]
    values = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def _problem(error: BaseException) -> str:
    # torch's own error says less than the system's that led to it
    cause = error.__context__ if isinstance(error.__context__, OSError) else error
    return os.strerror(cause.errno) if isinstance(cause, OSError) and cause.errno else str(cause).splitlines()[0]
