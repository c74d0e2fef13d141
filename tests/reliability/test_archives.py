"""Hostile archives, fetched as torchvision fetches its data sets: nothing lands outside, and the error names why."""

from __future__ import annotations

import hashlib
import io
import stat
import struct
import tarfile
import threading
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision import datasets

from ssl_toolkit.data import ImageData
from ssl_toolkit.io.archives import BadArchive, check_not_compressed, unpack_tar, unpack_zip


def picture() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname, made.mode = kind, link, 0o644
    return made


def tar(*members: tarfile.TarInfo, content: bytes = b"outside") -> bytes:
    """A sound data set, and then these members."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        for name in ("country211/train/ant/a.png", "country211/train/bee/b.png", "country211/test/ant/c.png"):
            made = member(name)
            made.size = len(picture())
            archive.addfile(made, io.BytesIO(picture()))
        for made in members:
            made.size = len(content) if made.isreg() else 0
            archive.addfile(made, io.BytesIO(content) if made.isreg() else None)
    return file.getvalue()


def huge_tar() -> bytes:
    """A member that claims ten gigabytes, of which there are none."""
    import gzip

    made = member("country211/huge.png")
    made.size = 10 << 30
    sound = gzip.decompress(tar())[: -tarfile.RECORDSIZE // 2]
    end = len(sound.rstrip(b"\0")) + 511 & ~511
    return gzip.compress(sound[:end] + made.tobuf(tarfile.GNU_FORMAT) + bytes(1 << 16), 1)


def sparse_tar() -> bytes:
    """A file of ten gigabytes of holes (the old format of GNU)."""
    import gzip

    made = bytearray(member("country211/holes.png", tarfile.GNUTYPE_SPARSE).tobuf(tarfile.GNU_FORMAT))
    made[386:410] = b"%011o\0%011o\0" % (0, 0)
    made[483:495] = b"\x80" + (10 << 30).to_bytes(11, "big")
    made[148:156] = b" " * 8
    made[148:156] = b"%06o\0 " % sum(made)
    sound = gzip.decompress(tar())
    end = len(sound.rstrip(b"\0")) + 511 & ~511
    return gzip.compress(sound[:end] + bytes(made) + bytes(1 << 14), 1)


def zipped(name: str, mode: int = stat.S_IFREG | 0o644, content: bytes = b"outside", claim: int | None = None) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for label in ("ant", "bee"):
            archive.writestr(f"2750/{label}/a.png", picture())
        made = zipfile.ZipInfo(name)
        made.external_attr, made.compress_type = mode << 16, zipfile.ZIP_DEFLATED
        archive.writestr(made, content)
    written = bytearray(file.getvalue())
    if claim is not None:
        # the size in the central directory, which is the third of its entries
        start = written.rindex(b"PK\1\2")
        written[start + 24 : start + 28] = struct.pack("<I", claim)
    return bytes(written)


def archives() -> dict[str, tuple[bytes, str]]:
    """What is fetched, by the member that the error must name, and what it says of it."""
    many = b"\0" * (400 << 20)
    return {
        "tar ..": (tar(member("../../escaped")), r"'../../escaped', which would lie outside"),
        "tar deep ..": (tar(member("country211/train/../../../escaped")), r"escaped', which would lie outside"),
        "tar absolute": (tar(member("/OUTSIDE/escaped")), r"'/OUTSIDE/escaped', which would lie outside"),
        "tar symlink": (
            tar(member("country211/out", tarfile.SYMTYPE, "/OUTSIDE"), member("country211/out/escaped")),
            r"'country211/out', a link that leads out",
        ),
        "tar relative symlink": (
            tar(member("country211/up", tarfile.SYMTYPE, "../../.."), member("country211/up/escaped")),
            r"'country211/up', a link that leads out",
        ),
        "tar hardlink": (tar(member("country211/hard", tarfile.LNKTYPE, "../../secret")), r"'country211/hard', a link"),
        "tar device": (tar(member("country211/zero.png", tarfile.CHRTYPE)), r"zero.png', which is a device or a pipe"),
        "tar pipe": (tar(member("country211/pipe.png", tarfile.FIFOTYPE)), r"pipe.png', which is a device or a pipe"),
        "tar huge": (huge_tar(), r"huge.png', which claims 10,737,418,240 bytes"),
        "tar of holes": (sparse_tar(), r"holes.png', which claims 10,737,418,240 bytes"),
        "zip ..": (zipped("../../escaped"), r"'../../escaped', which would lie outside"),
        "zip absolute": (zipped("/OUTSIDE/escaped"), r"'/OUTSIDE/escaped', which would lie outside"),
        "zip of Windows": (zipped("C:\\OUTSIDE\\escaped"), r"escaped', which would lie outside"),
        "zip symlink": (zipped("2750/out", stat.S_IFLNK | 0o777, b"/OUTSIDE"), r"'2750/out', which is a link or"),
        "zip huge": (zipped("2750/huge.png", claim=(4 << 30) - 16), r"huge.png', which claims 4,294,967,280 bytes"),
        "zip bomb": (zipped("2750/bomb.png", content=many * 3), r"bomb.png', which claims 1,258,291,200 bytes"),
    }


class Quiet(SimpleHTTPRequestHandler):
    """Says nothing, as of a client that hangs up before the end."""

    def log_message(self, *_) -> None:
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Serves a folder on this machine; yields the folder and its address."""
    folder = tmp_path / "served"
    folder.mkdir()
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "127.0.0.1")
    serving = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=serving.serve_forever)
    thread.start()
    yield folder, f"http://127.0.0.1:{serving.server_port}"
    serving.shutdown()
    thread.join()
    serving.server_close()


def fetch(kind: str, content: bytes, server, root: Path, monkeypatch) -> ImageData:
    """A data set whose archive is this, with a checksum that fits: the mirror is in it."""
    folder, address = server
    md5 = hashlib.md5(content).hexdigest()
    if kind.startswith("tar"):
        (folder / "country211.tgz").write_bytes(content)
        monkeypatch.setattr(datasets.Country211, "_URL", f"{address}/country211.tgz")
        monkeypatch.setattr(datasets.Country211, "_MD5", md5)
        source = "torchvision:Country211"
    else:
        (folder / "EuroSAT.zip").write_bytes(content)
        original = datasets.eurosat.download_and_extract_archive

        def download(url: str, download_root: str, md5: str, _md5: str = md5) -> None:
            original(f"{address}/EuroSAT.zip", download_root, md5=_md5)

        monkeypatch.setattr(datasets.eurosat, "download_and_extract_archive", download)
        source = "torchvision:EuroSAT"
    data = ImageData(str(root), source, download=True, batch_size=1, image_size=8, val_fraction=0.0, cache="none")
    data.setup()
    return data


def below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.mark.guarantee("D4")
@pytest.mark.slow
def test_hostile_archives_write_nothing_outside(server, tmp_path, monkeypatch, reached, capsys):
    place = tmp_path / "place"
    hostile = archives()
    for number, (kind, (content, message)) in enumerate(hostile.items()):
        root = place / "deep" / str(number) / "root"
        root.mkdir(parents=True)
        (place / "secret").write_text("secret")
        before = below(tmp_path) - below(root)
        with monkeypatch.context() as patched, pytest.raises(ValueError, match=message) as caught:
            fetch(kind, content, server, root, patched)
        assert "\n" not in str(caught.value)
        assert "cannot unpack torchvision's" in str(caught.value)
        new = {path for path in below(tmp_path) if not path.startswith("served")}
        inside = {str(root.relative_to(tmp_path) / path) for path in below(root)}
        assert new - inside == {path for path in before if not path.startswith("served")}, kind
        assert not any("escaped" in path for path in new)
        assert not Path("/OUTSIDE").exists()
        assert not any(path.is_symlink() and not path.resolve().is_relative_to(root) for path in root.rglob("*"))
        assert sum(path.stat().st_size for path in root.rglob("*")) < 10 << 20
    reached(f"{len(hostile)} of {len(hostile)} archives: 0 files outside, and the error names the member")


def test_sound_archives_are_unpacked(server, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        data = fetch("tar", tar(member("country211/a-link", tarfile.SYMTYPE, "train")), server, tmp_path / "t", patched)
    assert data.num_images("train") == 2
    assert data.num_images("test") == 1
    assert datasets.utils._ARCHIVE_EXTRACTORS[".tar"] is datasets.utils._extract_tar
    with monkeypatch.context() as patched:
        data = fetch("zip", zipped("2750/bee/b.png", content=picture()), server, tmp_path / "z", patched)
    assert data.num_images("train") == 3


@pytest.mark.parametrize("damage", [b"", b"not an archive", "cut"])
def test_damaged_archives_are_errors_of_one_line(damage, tmp_path):
    for name, unpack, content in (("a.tgz", unpack_tar, tar()), ("a.zip", unpack_zip, zipped("b"))):
        (tmp_path / name).write_bytes(content[: len(content) // 2] if damage == "cut" else damage)
        with pytest.raises(BadArchive, match=r"' is damaged: \S") as caught:
            unpack(tmp_path / name, tmp_path / "to", ".gz")
        assert "\n" not in str(caught.value)


def test_an_old_python_unpacks_nothing(tmp_path, monkeypatch):
    monkeypatch.delattr(tarfile, "data_filter")
    (tmp_path / "a.tgz").write_bytes(tar())
    with pytest.raises(BadArchive, match=r"safe with Python 3\.10\.12, 3\.11\.4 and later only"):
        unpack_tar(tmp_path / "a.tgz", tmp_path / "to", ".gz")


def test_room_on_the_disk_is_asked_for(tmp_path, monkeypatch):
    from collections import namedtuple

    from ssl_toolkit.io import archives

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(archives.shutil, "disk_usage", lambda _: usage(100, 90, 10))
    (tmp_path / "a.tgz").write_bytes(tar())
    with pytest.raises(BadArchive, match="more than the disk has room for"):
        unpack_tar(tmp_path / "a.tgz", tmp_path / "to", ".gz")


def test_a_compressed_file_of_torch_is_refused(tmp_path):
    import torch

    torch.save(torch.zeros(1000), tmp_path / "plain.pt")
    check_not_compressed(tmp_path / "plain.pt")
    with zipfile.ZipFile(tmp_path / "plain.pt") as plain, zipfile.ZipFile(tmp_path / "packed.pt", "w", 8) as packed:
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    with pytest.raises(BadArchive, match="compressed member"):
        check_not_compressed(tmp_path / "packed.pt")
    assert (tmp_path / "packed.pt").stat().st_size < (tmp_path / "plain.pt").stat().st_size
