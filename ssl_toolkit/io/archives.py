"""Archives from elsewhere, unpacked safely: nothing is written outside the folder, and the size is bounded."""

from __future__ import annotations

import contextlib
import shutil
import stat
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

_MOST_TIMES = 100  # what images and their lists grow by when they are unpacked, and far more
_NOT_WORTH_ASKING = 1 << 30  # bytes that a small archive may grow to in any case
_ONE_AT_A_TIME = threading.RLock()


class BadArchive(ValueError):
    """An archive with a member that has no business in one; the message names both."""


@contextlib.contextmanager
def guarded_unpacking() -> Iterator[None]:
    """Has torchvision's data sets unpack what they download by `unpack_tar` and `unpack_zip`.

    Its own way takes the parts that lead out of a folder from the name of a member of a zip archive and unpacks it
    nevertheless, does not ask how large anything becomes, and with Python before 3.10.12 or 3.11.4 lets a tar archive
    write anywhere.
    """
    from torchvision.datasets import utils

    with _ONE_AT_A_TIME:
        before = dict(utils._ARCHIVE_EXTRACTORS)
        utils._ARCHIVE_EXTRACTORS.update({".tar": unpack_tar, ".zip": unpack_zip})
        try:
            yield
        finally:
            utils._ARCHIVE_EXTRACTORS.update(before)


def unpack_tar(archive: str | Path, folder: str | Path, compression: str | None = None) -> None:
    """Unpacks a tar archive.

    Args:
        archive: The file.
        folder: Where.
        compression: The suffix that tells: ``.gz``, ``.bz2``, ``.xz``, or None for none.

    Raises:
        BadArchive: A member would lie outside the folder, is a link out of it, no file, or too large.
    """
    if not hasattr(tarfile, "data_filter"):
        raise BadArchive(f"'{archive}' is not unpacked: that is safe with Python 3.10.12, 3.11.4 and later only")
    room = _Room(archive, folder)

    def check(member: tarfile.TarInfo, path: str) -> tarfile.TarInfo | None:
        _check_name(archive, member.name)
        if not (member.isreg() or member.isdir() or member.issym() or member.islnk()):
            raise BadArchive(
                f"'{archive}' holds '{member.name}', which is a device or a pipe; nothing more is unpacked"
            )
        room.take(member.name, member.size)
        try:
            return tarfile.data_filter(member, path)
        except tarfile.FilterError as error:
            raise BadArchive(f"'{archive}' holds '{member.name}', a link that leads out of its folder") from error

    mode: Any = f"r:{compression[1:]}" if compression else "r"
    with _in_one_line(archive), tarfile.open(archive, mode) as tar:
        tar.extractall(folder, filter=check)


def unpack_zip(archive: str | Path, folder: str | Path, compression: str | None = None) -> None:
    """Unpacks a zip archive.

    Args:
        archive: The file.
        folder: Where.
        compression: Is not asked: every member of a zip archive says its own.

    Raises:
        BadArchive: A member would lie outside the folder, is a link, no file, or too large.
    """
    room = _Room(archive, folder)
    with _in_one_line(archive), zipfile.ZipFile(archive) as file:
        for member in file.infolist():
            _check_name(archive, member.filename)
            kind = stat.S_IFMT(member.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise BadArchive(
                    f"'{archive}' holds '{member.filename}', which is a link or a device; none is unpacked"
                )
            room.take(member.filename, member.file_size)
        for member in file.infolist():
            file.extract(member, folder)


def check_not_compressed(path: str | Path) -> None:
    """Refuses a file of `torch.save` that would take more memory than it has bytes: torch itself never compresses.

    Raises:
        BadArchive: The file claims to hold more.
    """
    num_bytes = Path(path).stat().st_size
    with contextlib.suppress(zipfile.BadZipFile), zipfile.ZipFile(path) as file:
        for member in file.infolist():
            if member.file_size > num_bytes or member.compress_type != zipfile.ZIP_STORED:
                raise BadArchive(
                    f"'{path}' holds the compressed member '{member.filename}', which torch does not write"
                )


class _Room:
    """What an archive may still grow by.

    Args:
        archive: The file.
        folder: Where it is unpacked.
    """

    def __init__(self, archive: str | Path, folder: str | Path) -> None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        self._archive = archive
        self._free = shutil.disk_usage(folder).free
        self._most = max(_NOT_WORTH_ASKING, _MOST_TIMES * Path(archive).stat().st_size)
        self._taken = 0

    def take(self, name: str, num_bytes: int) -> None:
        """Counts a member, or refuses it."""
        self._taken += num_bytes
        if self._taken > min(self._most, self._free):
            why = "than the disk has room for" if self._taken > self._free else "than can be in so small an archive"
            raise BadArchive(
                f"'{self._archive}' holds '{name}', which claims {num_bytes:,} bytes: in all {self._taken:,}, "
                f"more {why}"
            )


def _check_name(archive: str | Path, name: str) -> None:
    # what leads out of a folder on Windows has no business in an archive either
    for path in (PurePosixPath(name), PureWindowsPath(name)):
        if path.is_absolute() or path.drive or path.root or ".." in path.parts:
            raise BadArchive(f"'{archive}' holds '{name}', which would lie outside of '{Path(archive).parent}'")


@contextlib.contextmanager
def _in_one_line(archive: str | Path) -> Iterator[None]:
    try:
        yield
    except BadArchive:
        raise
    # a damaged archive fails in as many ways as there are compressions
    except Exception as error:
        raise BadArchive(f"'{archive}' is damaged: {' '.join(str(error).split()) or type(error).__name__}") from error
