"""Local cache of remote shards: copies of whole files in a folder of bounded size, shared by all processes."""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from filelock import FileLock

from ssl_toolkit.data.shards import remote
from ssl_toolkit.data.shards.remote import Found, plain

_STALE_SECONDS = 24 * 3600
_MOST_TRIES = 5

T = TypeVar("T")


class LocalCache:
    """Least-recently-used cache of remote shards in a folder.

    A copy is there whole or not at all, and made by one process while others wait for it. A copy that is removed while
    a process reads it stays readable for that process.

    Args:
        folder: Made where it is missing.
        limit: Bytes that copies may take.

    Raises:
        ValueError: The folder cannot be made.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder = folder
        self.limit = limit
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _cannot_write(folder, error) from error

    def fetch(self, address: str, found: Found, stopped: threading.Event | None = None) -> Path:
        """The copy of a shard, made if need be.

        Args:
            address: Of the shard.
            found: How it must be.
            stopped: Set to give up.

        Raises:
            ValueError: The shard cannot be read or has changed, or the disk is full.
            Stopped: ``stopped`` was set.
        """
        path = self._path(address, found)
        try:
            if _touch(path):
                return path
            # several threads or processes may want it; each FileLock opens the file for itself, so threads wait, too
            with FileLock(path.with_suffix(".lock")):
                if not _touch(path):
                    self._make(address, found, path, stopped or threading.Event())
        except OSError as error:
            raise _cannot_write(self.folder, error) from error
        return path

    def opened(
        self, address: str, found: Found, opener: Callable[[Path], T], stopped: threading.Event | None = None
    ) -> T:
        """Opens the copy of a shard; it is made once more if another thread or process removes it before that.

        Args:
            address: As for `fetch`.
            found: Likewise.
            opener: Opens the copy.
            stopped: As for `fetch`.

        Raises:
            OSError: The opener's.
            ValueError: As for `fetch`.
        """
        for _ in range(_MOST_TRIES - 1):
            with contextlib.suppress(FileNotFoundError):
                return opener(self.fetch(address, found, stopped))
        return opener(self.fetch(address, found, stopped))

    def release(self, address: str, found: Found) -> None:
        """Makes the copy of a shard the first one to be removed."""
        with contextlib.suppress(FileNotFoundError):
            os.utime(self._path(address, found), (0, 0))

    def _path(self, address: str, found: Found) -> Path:
        name = hashlib.blake2b(f"{plain(address)}\n{found}".encode("utf-8", "replace"), digest_size=16).hexdigest()
        return self.folder / f"{name}.tar"

    def _make(self, address: str, found: Found, path: Path, stopped: threading.Event) -> None:
        # the size is part of the name, so that what is still to come counts already
        partial = path.with_suffix(f".{found.size}.partial")
        room = self.folder / "room.lock"
        try:
            with FileLock(room):
                self._make_room(found.size)
                partial.touch()
            remote.download(address, partial, found, stopped)
            with FileLock(room):  # a process that counts must find it under one of its names
                partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)

    def _make_room(self, needed: int) -> None:
        copies = []
        taken = needed
        for file in self.folder.iterdir():
            with contextlib.suppress(FileNotFoundError):
                status = file.stat()
                is_old = time.time() - status.st_mtime > _STALE_SECONDS
                if file.suffix == ".tar":
                    copies.append((status.st_mtime_ns, status.st_size, file))
                    taken += status.st_size
                elif is_old and file.name != "room.lock":  # of a process that was killed
                    file.unlink()
                elif file.suffix == ".partial":
                    taken += max(status.st_size, int(file.name.split(".")[1]))
        for _, size, file in sorted(copies):
            if taken <= self.limit:
                break
            file.unlink(missing_ok=True)
            taken -= size


def _touch(path: Path) -> bool:
    """Notes that a copy is used; False if there is none."""
    try:
        os.utime(path)
    except FileNotFoundError:
        return False
    return True


def _cannot_write(folder: Path, error: OSError) -> ValueError:
    return ValueError(
        f"cannot keep copies of shards in '{folder}': {error.strerror or error}; set data.cache_dir to a folder with "
        "room for them, or data.shard_cache to fewer GB"
    )
