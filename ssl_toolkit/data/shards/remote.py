"""Remote shards: web servers by the standard library, everything else through fsspec."""

from __future__ import annotations

import errno
import re
import threading
from collections.abc import Callable
from http.client import HTTPException, InvalidURL
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from ssl_toolkit.errors import printable

T = TypeVar("T")

TRIES = 5
FIRST_PAUSE = 1.0
"""Seconds before the second try; each further pause is twice as long."""
TIMEOUT = 60.0
"""Seconds in which a web server must send something."""

_CHUNK = 1 << 20
_DISK = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS})
_STAMPS = ("ETag", "etag", "md5Hash", "content_md5", "LastModified", "last_modified", "mtime", "updated", "created")
_PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}
_PACKAGES |= {"abfss": "adlfs", "hf": "huggingface_hub", "oci": "ocifs", "oss": "ossfs", "sftp": "paramiko"}


class Found(NamedTuple):
    """State of a remote file, by which a change is noticed.

    Attributes:
        size: In bytes.
        stamp: A text that changes with the content, as far as is said: an ETag, a sum, or a time.
    """

    size: int
    stamp: str


class Stopped(Exception):
    """The download was given up: nothing waits for this file any more."""


class _Final(Exception):
    """What another try would not mend."""


def is_remote(address: str) -> bool:
    """Whether this is an address with a scheme, such as ``s3://``, and no path."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", address) is not None


def is_http(address: str) -> bool:
    """Whether a web server has it."""
    return address.lower().startswith(("http://", "https://"))


def plain(address: str) -> str:
    """An address for messages and files: without what follows a question mark, which may be a key."""
    return printable(address.partition("?")[0] if is_remote(address) else address)


def look(address: str) -> Found:
    """Size and state of a file.

    Raises:
        ValueError: It is not there, or cannot be reached in several tries.
    """
    return _patiently(address, lambda: _look(address))


def find(pattern: str) -> list[str]:
    """The files that match a pattern of an object store, sorted.

    Raises:
        ValueError: It cannot be reached in several tries.
    """

    def search() -> list[str]:
        system, path = _file_system(pattern)
        return sorted(system.unstrip_protocol(name) for name in system.glob(path))

    return _patiently(pattern, search)


def download(address: str, target: Path, expected: Found, stopped: threading.Event) -> None:
    """Copies a whole file to this machine. What a web server sent before a connection broke is not sent again.

    Args:
        address: Of the file.
        target: Where to.
        expected: How it must be.
        stopped: Set to give up.

    Raises:
        ValueError: It has changed, is not there, or cannot be reached in several tries.
        OSError: The disk is full.
        Stopped: ``stopped`` was set.
    """
    target.write_bytes(b"")

    def copy() -> None:
        if _look(address) != expected:
            raise _Final("it has changed since its index was made; start again, and it will be indexed anew")
        (_copy_http if is_http(address) else _copy_fsspec)(address, target, expected.size, stopped)
        size = target.stat().st_size
        if size != expected.size:
            raise OSError(f"{size:,} of {expected.size:,} bytes came")

    _patiently(address, copy, stopped)


def _patiently(address: str, action: Callable[[], T], stopped: threading.Event | None = None) -> T:
    """Does it, and does it again after a pause if it failed."""
    stopped = stopped or threading.Event()
    pause, reason = FIRST_PAUSE, ""
    for number in range(TRIES):
        if number and stopped.wait(pause * 2 ** (number - 1)):
            raise Stopped
        try:
            return action()
        except Stopped:
            raise
        except FileNotFoundError:
            raise ValueError(f"the shard '{plain(address)}' is not there") from None
        except (_Final, PermissionError) as error:
            raise ValueError(f"cannot read the shard '{plain(address)}': {_short(error)}") from None
        except Exception as error:  # clients of object stores have their own exceptions
            if isinstance(error, OSError) and error.errno in _DISK:
                raise
            reason = _short(error)
    raise ValueError(
        f"cannot read the shard '{plain(address)}' in {TRIES} tries: {reason}; check the network and the server"
    )


def _short(error: Exception) -> str:
    # the address of a request may hold a key
    text = re.sub(r"\?\S*", "", " ".join(str(error).split())) or type(error).__name__
    return printable(text if len(text) <= 200 else text[:197] + "...")


def _look(address: str) -> Found:
    return _look_http(address) if is_http(address) else _look_fsspec(address)


def _request(address: str, method: str = "GET", **headers: str) -> Any:
    """Opens an address of a web server."""
    # compressed on its way, it would come in another size
    request = Request(address, headers={"Accept-Encoding": "identity", **headers}, method=method)
    try:
        return urlopen(request, timeout=TIMEOUT)
    except HTTPError as error:
        error.close()
        text = f"the server says {error.code} {error.reason}"
        if 400 <= error.code < 500 and error.code not in (408, 425, 429):
            raise _Final(text) from None
        raise OSError(text) from None
    except (InvalidURL, ValueError) as error:
        raise _Final(str(error)) from None
    except URLError as error:
        raise OSError(str(error.reason)) from None


def _look_http(address: str) -> Found:
    try:
        with _request(address, "HEAD") as answer:
            headers = answer.headers
            size = headers.get("Content-Length", "")
    except _Final:
        size = ""
    if not size.isdigit():
        # the server does not answer this kind of question, or the address is signed for reading only
        with _request(address, Range="bytes=0-0") as answer:
            headers = answer.headers
            size = headers.get("Content-Range", "").rpartition("/")[2]
            if answer.status == 200:
                size = headers.get("Content-Length", "")
    if not size.isdigit():
        raise _Final("the server does not say how large it is")
    return Found(int(size), headers.get("ETag") or headers.get("Last-Modified") or "")


def _copy_http(address: str, target: Path, size: int, stopped: threading.Event) -> None:
    there = target.stat().st_size if target.exists() else 0
    headers = {"Range": f"bytes={there}-"} if 0 < there < size else {}
    with _request(address, **headers) as answer, target.open("ab" if answer.status == 206 else "wb") as file:
        try:
            while chunk := answer.read(_CHUNK):
                if stopped.is_set():
                    raise Stopped
                if file.tell() + len(chunk) > size:
                    raise _Final(f"more than its {size:,} bytes come")
                file.write(chunk)
        except HTTPException as error:
            raise OSError(f"the connection ended: {error}") from None


def _file_system(address: str) -> tuple[Any, str]:
    from fsspec.core import url_to_fs

    scheme = address.partition("://")[0]
    try:
        return url_to_fs(address)
    except ImportError as error:
        package = _PACKAGES.get(scheme)
        install = f"pip install {package}" if package else str(error)
        raise _Final(f"addresses of {scheme}:// need one more package: {install}") from None
    except ValueError as error:
        raise _Final(str(error)) from None


def _look_fsspec(address: str) -> Found:
    system, path = _file_system(address)
    system.invalidate_cache()
    info = system.info(path)
    if info.get("type") == "directory" or info.get("size") is None:
        raise _Final("it is a folder, or the store does not say how large it is")
    return Found(int(info["size"]), next((str(info[name]) for name in _STAMPS if info.get(name) is not None), ""))


def _copy_fsspec(address: str, target: Path, size: int, stopped: threading.Event) -> None:
    from fsspec.callbacks import Callback

    class Watch(Callback):
        def relative_update(self, inc: int = 1) -> None:
            if stopped.is_set():
                raise Stopped

    system, path = _file_system(address)
    system.get_file(path, str(target), callback=Watch())
