"""Small tar shards, and a web server that can misbehave; for tests only."""

from __future__ import annotations

import hashlib
import io
import re
import tarfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
from PIL import Image


def png(number: int, width: int = 6, height: int = 5) -> bytes:
    """An image whose colour tells its number."""
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (number % 256, number // 256, 7)).save(buffer, "PNG")
    return buffer.getvalue()


def number_of(pixels: np.ndarray) -> int:
    """The number of an image of `png`, from uint8 ``[height, width, 3]``."""
    return int(pixels[0, 0, 0]) + 256 * int(pixels[0, 0, 1])


def write_tar(path: Path, files: list[tuple[str, bytes]], format: int = tarfile.PAX_FORMAT) -> Path:
    """A tar archive of these files in this order, by Python's own module."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=format) as archive:
        for name, content in files:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def write_shards(folder: Path, shards: int = 6, images: int = 5, classes: int = 3) -> Path:
    """Shards ``train-000000.tar`` and on; image ``i`` of all is `png` ``i`` and has the class ``i % classes``."""
    for shard in range(shards):
        files = []
        for number in range(shard * images, (shard + 1) * images):
            files += [(f"{number:06d}.png", png(number)), (f"{number:06d}.cls", str(number % classes).encode())]
            files.append((f"{number:06d}.json", b"{}"))
        write_tar(folder / f"train-{shard:06d}.tar", files)
    return folder


class WebServer(ThreadingHTTPServer):
    """Serves the files of a folder, with ranges and ETags.

    Attributes:
        asked: Of each request the method, the path, and the range ("" for none).
        faults: By path, what happens at the next requests for it: a status, "cut" (the connection ends in the middle)
            or "stall" (nothing comes).
        sent: Bytes of content, of whole or partial files.
        knows_head: Whether HEAD is answered.
    """

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.asked: list[tuple[str, str, str]] = []
        self.faults: dict[str, list[int | str]] = {}
        self.sent = 0
        self.knows_head = True
        self.address = f"http://127.0.0.1:{self.server_address[1]}"

    def downloads(self) -> list[str]:
        """The files that were asked for as a whole."""
        return [path for method, path, span in self.asked if method == "GET" and span == ""]

    def handle_error(self, *_: object) -> None:
        """A client may go away."""


class _Handler(BaseHTTPRequestHandler):
    server: WebServer

    def do_HEAD(self) -> None:
        self.answer(with_content=False)

    def do_GET(self) -> None:
        self.answer(with_content=True)

    def answer(self, with_content: bool) -> None:
        name = self.path.partition("?")[0].lstrip("/")
        span = self.headers.get("Range", "")
        self.server.asked.append((self.command, name, span))
        if self.command == "HEAD" and not self.server.knows_head:
            return self.send_error(405)
        file = self.server.folder / name
        if not file.is_file():
            return self.send_error(404)
        faults = self.server.faults.get(name, [])
        fault = faults.pop(0) if faults and with_content else None
        if isinstance(fault, int):
            return self.send_error(fault)
        content = file.read_bytes()
        start, stop = 0, len(content)
        if match := re.fullmatch(r"bytes=(\d+)-(\d*)", span):
            start = int(match[1])
            stop = min(stop, int(match[2]) + 1) if match[2] else stop
        self.send_response(206 if span else 200)
        if span:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(content)}")
        self.send_header("Content-Length", str(stop - start))
        self.send_header("ETag", f'"{hashlib.md5(content).hexdigest()}"')
        self.end_headers()
        if not with_content:
            return None
        if fault == "stall":
            time.sleep(2)
            return None
        part = content[start : start + (stop - start) // 2] if fault == "cut" else content[start:stop]
        self.wfile.write(part)
        self.server.sent += len(part)
        return None

    def log_message(self, *_: object) -> None:
        """Quiet."""


@contextmanager
def web_server(folder: Path) -> Iterator[WebServer]:
    """A server of a folder on a free port, as long as the block."""
    server = WebServer(folder)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=5)
