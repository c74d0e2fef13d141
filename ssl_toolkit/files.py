"""Files that are there whole or not at all."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path


def write_atomically(path: str | Path, content: str | bytes) -> None:
    """Writes a file beside its place, flushes it to the disk, and moves it there; an older one is replaced.

    Args:
        path: Where; folders that are missing are made.
        content: Text, written as UTF-8, or bytes.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_checksum(content: str | Path, target: str | Path) -> None:
    """Writes the SHA-256 of a file to ``TARGET.sha256``, as ``sha256sum --check`` reads it.

    Args:
        content: The file as it is now.
        target: Where the file is going to be.
    """
    target = Path(target)
    write_atomically(_checksum_file(target), f"{_sha256(Path(content))}  {target.name}\n")


def remove_with_checksum(path: str | Path) -> None:
    """Deletes a file, and what `write_checksum` wrote for it."""
    path = Path(path)
    path.unlink(missing_ok=True)
    _checksum_file(path).unlink(missing_ok=True)


def damage(path: str | Path) -> str | None:
    """What is wrong with a file that should have a checksum beside it; None if it is whole."""
    path = Path(path)
    try:
        expected = _checksum_file(path).read_text(encoding="utf-8", errors="replace").split()
        found = _sha256(path)
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    return None if expected[:1] == [found] else f"it is not what {_checksum_file(path).name} says"


def _checksum_file(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 22):
            digest.update(block)
        return digest.hexdigest()
