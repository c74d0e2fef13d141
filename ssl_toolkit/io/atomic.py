"""Atomic file writes: a file is there whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

# within a folder: the checksums of its files
SUMS = "SHA256SUMS"


def write_atomically(path: str | Path, content: str | bytes) -> None:
    """Atomic write: writes a file beside its place, flushes it to the disk, and moves it there, replacing an older one.

    Args:
        path: Where; folders that are missing are made.
        content: Text, written as UTF-8, or bytes.
    """
    with atomic_file(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def atomic_file(path: str | Path) -> Iterator[BinaryIO]:
    """Atomic file to write in parts: it appears at the end of the block, or not at all if that fails."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def open_plain(path: str | Path) -> BinaryIO:
    """Opens a file for reading, if it is one.

    To open a named pipe waits for ever for somebody to write into it, and to open a device may do anything.

    Raises:
        OSError: There is no such file, or it is a pipe, a socket, a device or a folder.
    """
    problem = OSError(errno.EINVAL, "not a file, but a pipe, a socket, a device or a folder", str(path))
    if not stat.S_ISREG(Path(path).stat().st_mode):
        raise problem
    # asked again of what was opened, without waiting: it may have been exchanged in between
    file = open(path, "rb", opener=_open_without_waiting)  # noqa: SIM115 - it is for the caller to close
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise problem
    return file


def _open_without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def write_checksum(content: str | Path, target: str | Path) -> None:
    """Writes the SHA-256 of a file to ``TARGET.sha256``, as ``sha256sum --check`` reads it.

    Args:
        content: The file as it is now.
        target: Where the file is going to be.
    """
    target = Path(target)
    write_atomically(_checksum_file(target), f"{sha256(Path(content))}  {target.name}\n")


def remove_with_checksum(path: str | Path) -> None:
    """Deletes a file, and what `write_checksum` wrote for it; or a folder."""
    path = Path(path)
    if path.is_dir():
        # under another name first: what is half removed must not be taken for what it was
        going = path.with_name(f".{path.name}.{os.getpid()}.partial")
        path.rename(going)
        shutil.rmtree(going)
        return
    path.unlink(missing_ok=True)
    _checksum_file(path).unlink(missing_ok=True)


def remove_orphans(folder: Path) -> None:
    """Deletes what processes that were killed have left of files and folders they were writing."""
    for orphan in folder.glob(".*.partial"):
        if orphan.is_dir():
            shutil.rmtree(orphan)
        else:
            orphan.unlink(missing_ok=True)


def checksums(folder: Path, pattern: str) -> dict[str, str]:
    """The SHA-256 of those files of a folder whose names match, by name."""
    return {file.name: sha256(file) for file in folder.glob(pattern)}


def flush_folder(folder: Path) -> None:
    """Flushes the names in a folder to the disk."""
    opened = os.open(folder, os.O_RDONLY)
    os.fsync(opened)
    os.close(opened)


def damage(path: str | Path) -> str | None:
    """What is wrong with a file that should have a checksum beside it, or a folder with `SUMS`; None if it is whole."""
    path = Path(path)
    if path.is_dir():
        return _damage_of_folder(path)
    try:
        with open_plain(_checksum_file(path)) as file:
            # a line of sha256sum, and no more of a file that is none
            expected = file.read(1024).decode("utf-8", "replace").split()
        found = sha256(path)
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except OSError as error:
        return f"{Path(error.filename or path).name}: {error.strerror}"
    return None if expected[:1] == [found] else f"it is not what {_checksum_file(path).name} says"


def _damage_of_folder(folder: Path) -> str | None:
    try:
        lines = (folder / SUMS).read_text(encoding="utf-8", errors="replace").splitlines()
        listed = {name: expected for expected, _, name in (line.partition("  ") for line in lines)}
        there = {file.name for file in folder.iterdir()} - {SUMS}
        if unlisted := sorted(there - listed.keys()):
            return f"{SUMS} lacks {unlisted[0]}"
        for name, expected in listed.items():
            if name not in there:
                return f"{name} is missing"
            if sha256(folder / name) != expected:
                return f"{name} is not what {SUMS} says"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except OSError as error:
        return f"{Path(error.filename or folder).name}: {error.strerror}"
    return None if listed else f"{SUMS} is empty"


def _checksum_file(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def sha256(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal digits."""
    with open_plain(path) as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 22):
            digest.update(block)
        return digest.hexdigest()
