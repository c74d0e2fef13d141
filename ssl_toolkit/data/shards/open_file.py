"""File with positional reads from several threads."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


class OpenFile:
    """An open file, closed when nobody holds it any more.

    Args:
        path: The file.

    Raises:
        OSError: It cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self._file = -1
        self._file = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))

    def read(self, size: int, offset: int) -> bytes:
        """Bytes from a place on; fewer where the file ends."""
        return os.pread(self._file, size, offset)

    def state(self) -> os.stat_result:
        """Of the file that was opened, also if another one has its name now."""
        return os.fstat(self._file)

    def __del__(self) -> None:
        if self._file >= 0:
            with contextlib.suppress(OSError):
                os.close(self._file)
