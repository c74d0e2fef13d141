"""Checkpoint files, for resuming a run and nothing else: written atomically, read as plain data."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import CheckpointIO
from torch import Tensor

from ssl_toolkit.checkpoint.contents import check_contents
from ssl_toolkit.distributed.ranks import is_rank_zero
from ssl_toolkit.io.archives import check_not_compressed
from ssl_toolkit.io.atomic import flush_folder, remove_with_checksum, write_checksum


class AtomicCheckpointIO(CheckpointIO):
    """Atomic checkpoint I/O: writes a checkpoint and its checksum beside their targets and renames them.

    A process killed at any moment leaves the old file or the new one, never a part: Lightning's own way goes through
    the system's temporary folder, and on another file system its last step is a copy over the old file. Where there is
    no room, what was there before stays, and the failure is counted.

    Attributes:
        failures: How many times in a row nothing could be written.
    """

    def __init__(self) -> None:
        self.failures = 0

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Saves, flushes to the disk, and renames; says so if it cannot."""
        target = Path(path)
        try:
            self._save(checkpoint, target)
            self.note(target, None)
        # torch raises a RuntimeError if its archive cannot be written to its end
        except (OSError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and not isinstance(error.__context__, OSError):
                raise
            self.note(target, str(error.__context__ if isinstance(error, RuntimeError) else error))

    def note(self, target: Path, problem: str | None) -> None:
        """Counts a failure, and says so; a success ends the row.

        Args:
            target: What was to be saved.
            problem: Why it could not; None if it was.
        """
        if problem is None:
            self.failures = 0
            return
        self.failures += 1
        if is_rank_zero():
            print(f"\ncould not save {target} ({problem}); what was saved before is kept", file=sys.stderr)

    def _save(self, checkpoint: dict[str, Any], target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
        try:
            with partial.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            # the checksum first: there is no moment at which a checkpoint has none
            write_checksum(partial, target)
            if target.is_dir():  # of a run whose weights were in parts
                remove_with_checksum(target)
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)
        flush_folder(target.parent)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """See `read_to_resume`."""
        return read_to_resume(Path(path))

    def remove_checkpoint(self, path: Any) -> None:
        """Deletes a checkpoint."""
        remove_with_checksum(path)


def read_checkpoint(path: Path, dtensors: Mapping[str, Tensor] | None = None) -> dict[str, Any]:
    """Loads a checkpoint, a file or a sharded folder: tensors and plain data.

    Args:
        path: A file, or the folder of a run whose weights were sharded.
        dtensors: For a folder: the parameters that are sharded (see `ssl_toolkit.checkpoint.sharded.load`).

    Raises:
        ValueError: If it holds anything else, or is damaged; nothing in it is run.
    """
    try:
        if path.is_dir():
            from ssl_toolkit.checkpoint import sharded

            loaded = sharded.load(path, dtensors)
        else:
            check_not_compressed(path)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of what is refused below
                loaded = torch.load(path, map_location="cpu", weights_only=True)
    # of what is no checkpoint, torch raises whatever comes first, and of a folder something outside of Exception
    except BaseException as error:
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            raise
        raise ValueError(
            f"{path} is no checkpoint of a run, which holds tensors and plain data only ({_first_line(error)}); "
            "nothing in it was run"
        ) from None
    missing = {"state_dict", "global_step", "loops", "pytorch-lightning_version"}
    missing -= set(loaded) if isinstance(loaded, dict) else set()
    if missing:
        raise ValueError(f"{path} is no checkpoint of a run: it lacks {', '.join(sorted(missing))}")
    return loaded


def read_to_resume(path: Path, dtensors: Mapping[str, Tensor] | None = None) -> dict[str, Any]:
    """Loads a checkpoint as `read_checkpoint` does, and checks all that a run restores from it.

    Args:
        path: Likewise.
        dtensors: Likewise.

    Raises:
        ValueError: Likewise; or if it claims what cannot be (see `ssl_toolkit.checkpoint.contents`).
    """
    loaded = read_checkpoint(path, dtensors)
    check_contents(loaded, path)
    return loaded


def _first_line(error: BaseException) -> str:
    # torch's error of a folder holds those of the processes
    for failure, _ in getattr(error, "failures", {}).values():
        return _first_line(failure)
    return (str(error).strip() or type(error).__name__).splitlines()[0]
