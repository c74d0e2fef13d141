from __future__ import annotations

import os
import signal
import threading
import time
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch

from ssl_toolkit.data import BadImage, Source, cache_file, console
from ssl_toolkit.data import cache as caching
from ssl_toolkit.data.bad_files import BadFiles
from ssl_toolkit.data.console import show_progress
from ssl_toolkit.data.store import DecodedStore, DecodingStore, Store


class Noise(Source):
    """Random images; those in ``bad`` cannot be read."""

    def __init__(self, num: int = 40, equal: bool = False, bad: tuple[int, ...] = (), channels: int = 3) -> None:
        self.num, self.equal, self.bad, self.channels = num, equal, bad, channels
        self.reads = 0

    def __len__(self) -> int:
        return self.num

    def read(self, index: int) -> np.ndarray:
        self.reads += 1
        if index in self.bad:
            raise BadImage(f"{index}.jpg", "truncated")
        draw = np.random.default_rng(index)
        height, width = (8, 6) if self.equal else draw.integers(1, 12, 2)
        return draw.integers(0, 256, (height, width, self.channels), dtype=np.uint8)

    def fingerprint(self) -> str:
        return f"{self.num} {self.equal} {self.bad}"


def open_store(source: Source, folder: Path, cache="memory", threads: int = 2, **rules) -> Store:
    bad = BadFiles(len(source), **rules)
    return caching.open_store(
        source, bad, settings="test", channels=3, num_threads=threads, cache=cache, cache_dir=folder
    )


@pytest.mark.parametrize("equal", [True, False])
@pytest.mark.parametrize("cache", ["memory", "disk", "none"])
@pytest.mark.parametrize("threads", [1, 2, 4])
def test_every_store_gives_the_images_of_the_source(tmp_path, cache, equal, threads):
    source = Noise(equal=equal, bad=() if equal else (5, 21))
    store = open_store(source, tmp_path, cache, threads)
    indices = np.array([7, 3, 39, 5, 3, 0, 21])
    images, missing = store.gather(indices)
    assert missing == ([] if equal else [3, 6])
    good = [index for index in indices if index not in source.bad]
    assert images.pixels.dtype == torch.uint8
    assert images.sizes.dtype == torch.int64
    canvas = images.sizes.amax(dim=0).tolist()
    assert list(images.pixels.shape) == [len(good), 3, *canvas]
    for place, index in enumerate(good):
        expected = source.read(index)
        height, width = expected.shape[:2]
        assert images.sizes[place].tolist() == [height, width]
        assert (images.pixels[place, :, :height, :width].numpy() == expected.transpose(2, 0, 1)).all()
        assert images.pixels[place].sum() == expected.astype(int).sum()  # nothing outside the image
    if not equal:
        assert sorted(store.bad.found) == [5, 21]


def test_the_file_is_reused_and_a_change_is_noticed(tmp_path):
    first = Noise(bad=(4,))
    open_store(first, tmp_path, "disk")
    assert first.reads == 32 + 40  # 32 to estimate the size
    for cache in ("disk", "auto"):  # auto takes a file that is there
        again = Noise(bad=(4,))
        store = open_store(again, tmp_path, cache)
        assert again.reads == 0
        assert isinstance(store, DecodedStore)
        assert [str(error) for error in store.bad.found.values()] == ["4.jpg: truncated"]
    changed = Noise(41, bad=(4,))
    open_store(changed, tmp_path, "disk")
    assert changed.reads == 32 + 41
    assert len(list(tmp_path.glob("*.images"))) == 2
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("damage", ["cut", "longer", "empty", "other"])
def test_a_damaged_file_is_built_again(tmp_path, damage, capsys):
    open_store(Noise(), tmp_path, "disk")
    (path,) = tmp_path.glob("*.images")
    data = path.read_bytes()
    path.write_bytes({"cut": data[:-9], "longer": data + b"x", "empty": b"", "other": b"x" * len(data)}[damage])
    source = Noise()
    store = open_store(source, tmp_path, "disk")
    assert source.reads == 32 + 40
    assert store.gather(np.array([0]))[0].pixels.numel()
    assert path.read_bytes() == data
    assert "is damaged; decoding the images again" in capsys.readouterr().err


def test_two_builders_at_once(tmp_path):
    class Slow(Noise):
        def read(self, index: int) -> np.ndarray:
            time.sleep(0.002)
            return super().read(index)

    stores: list[Store] = []
    threads = [threading.Thread(target=lambda: stores.append(open_store(Slow(), tmp_path, "disk"))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(stores) == 3
    expected = open_store(Noise(), tmp_path, "memory").gather(np.arange(40))[0].pixels
    assert all((store.gather(np.arange(40))[0].pixels == expected).all() for store in stores)
    assert [path.suffix for path in tmp_path.iterdir()] == [".images"]


def test_a_failed_build_leaves_no_images_and_old_leavings_are_removed(tmp_path):
    old, new = tmp_path / "old.partial", tmp_path / "new.partial"
    for path, days in ((old, 7.1), (new, 6.9)):
        path.touch()
        os.utime(path, (time.time() - days * 24 * 3600,) * 2)
    with pytest.raises(ValueError, match="cannot be decoded"):
        open_store(Noise(bad=tuple(range(20))), tmp_path, "disk")
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".lock", ".partial"]
    assert new.exists()


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("damage", ["none", "torn line", "lost bytes", "more bytes", "lost journal"])
def test_a_build_that_was_killed_goes_on_and_ends_the_same(tmp_path, damage, threads, monkeypatch, capsys):
    class Dying(Noise):
        def read(self, index: int) -> np.ndarray:
            if index == 99 and self.reads >= 32:  # not yet when the size is estimated
                raise Killed
            return super().read(index)

    monkeypatch.setattr(cache_file, "_SAVE_EVERY_BYTES", 1000)
    open_store(Noise(100, bad=(4, 30)), tmp_path / "whole", "disk")
    for _ in range(2):  # the second goes on and is killed, too
        with pytest.raises(Killed):
            open_store(Dying(100, bad=(4, 30)), tmp_path / "killed", "disk", threads)
    (images,), (journal,) = (list((tmp_path / "killed").glob(f"*.{suffix}")) for suffix in ("partial", "journal"))
    if damage == "torn line":
        journal.write_text(journal.read_text()[:-7])
    elif damage == "lost bytes":
        images.write_bytes(images.read_bytes()[:-300])
    elif damage == "more bytes":
        images.write_bytes(images.read_bytes() + b"x" * 300)
    elif damage == "lost journal":
        journal.unlink()
    capsys.readouterr()
    again = Noise(100, bad=(4, 30))
    store = open_store(again, tmp_path / "killed", "disk", threads)
    assert (again.reads - 32 < 60) == (damage != "lost journal")
    assert ("going on from there" in capsys.readouterr().err) == (damage != "lost journal")
    assert sorted(store.bad.found) == [4, 30]
    (whole,), (killed,) = ((tmp_path / folder).iterdir() for folder in ("whole", "killed"))
    assert whole.read_bytes() == killed.read_bytes()


def test_too_little_room_is_found_before_the_work(tmp_path, monkeypatch):
    source = Noise(equal=True)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(caching.shutil, "disk_usage", lambda _: usage(10**6, 10**6, 40 * 144 - 1))
    with pytest.raises(ValueError, match=r"about 5.76 kB, and 5.76 kB are free; set data.cache_dir"):
        open_store(source, tmp_path, "disk")
    assert source.reads == 32


def test_an_unwritable_folder(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"cannot write the decoded images to .*set data.cache_dir"):
        open_store(Noise(), tmp_path / "file" / "folder", "disk")


def test_auto_chooses_by_size(tmp_path, monkeypatch):
    source = Noise(equal=True)  # 40 x 144 bytes
    assert caching._choose(40 * 144, tmp_path) == "memory"
    monkeypatch.setattr(caching, "_MAX_MEMORY", 40 * 144)
    assert caching._choose(40 * 144, tmp_path) == "disk"
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(caching.shutil, "disk_usage", lambda _: usage(10**6, 10**6, 2 * 40 * 144))
    assert caching._choose(40 * 144, tmp_path) == "none"
    monkeypatch.undo()
    monkeypatch.setattr(caching, "_MAX_MEMORY", 0)
    monkeypatch.setattr(caching, "_MAX_DISK", 40 * 144)
    assert caching._choose(40 * 144, tmp_path) == "none"
    assert isinstance(open_store(source, tmp_path, "auto"), DecodingStore)
    (tmp_path / "file").touch()
    monkeypatch.setattr(caching, "_MAX_DISK", 10**9)
    assert caching._choose(40 * 144, tmp_path / "file") == "none"


def test_default_folder(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert caching.default_cache_dir() == Path("/somewhere/ssl-toolkit")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert caching.default_cache_dir() == Path.home() / ".cache" / "ssl-toolkit"


def test_bad_files_are_named_once_and_too_many_stop(tmp_path, capsys):
    store = open_store(Noise(bad=(3, 9)), tmp_path)
    assert capsys.readouterr().err.splitlines() == [
        "skipping the bad image 3.jpg: truncated",
        "skipping the bad image 9.jpg: truncated",
    ]
    store.gather(np.array([3, 3]))
    assert capsys.readouterr().err == ""
    with pytest.raises(ValueError, match=r"^5 of 40 images cannot be decoded, more than data.max_bad = 0.1") as caught:
        open_store(Noise(bad=(3, 9, 11, 20, 30)), tmp_path)
    assert "(3.jpg: truncated, 9.jpg: truncated, 11.jpg: truncated, ...)" in str(caught.value)
    open_store(Noise(bad=(3, 9, 11, 20, 30)), tmp_path, max_bad=0.125)
    with pytest.raises(ValueError, match=r"cannot decode the image 9.jpg: truncated"):
        open_store(Noise(bad=(9, 11)), tmp_path, on_error="raise")


def test_the_rules_hold_for_a_file_that_is_reused(tmp_path):
    open_store(Noise(bad=(3, 9)), tmp_path, "disk")
    with pytest.raises(ValueError, match=r"cannot decode the image 3.jpg"):
        open_store(Noise(bad=(3, 9)), tmp_path, "disk", on_error="raise")
    with pytest.raises(ValueError, match=r"2 of 40 images"):
        open_store(Noise(bad=(3, 9)), tmp_path, "disk", max_bad=0.0)


def test_without_a_cache_the_first_images_are_a_sample(tmp_path):
    store = open_store(Noise(200, bad=tuple(range(20))), tmp_path, "none")
    store.gather(np.arange(200))  # a tenth, although all of it comes first
    store = open_store(Noise(200, bad=(*range(0, 100, 5), 150)), tmp_path, "none")
    store.gather(np.arange(100))  # a fifth of these, but not more than a tenth of all
    with pytest.raises(ValueError, match=r"21 of 151 images cannot be decoded"):
        store.gather(np.arange(100, 151))
    store = open_store(Noise(5000, bad=tuple(range(0, 5000, 2))), tmp_path, "none")
    with pytest.raises(ValueError, match=r"25 of 50 images cannot be decoded"):
        store.gather(np.arange(50))  # more than chance makes of a tenth


@pytest.mark.parametrize("place", ["sizes", "bad", "lengths"])
def test_a_file_with_a_damaged_table_is_built_again(tmp_path, place, capsys):
    """The images themselves have no checksum; what says where they are must fit them."""
    open_store(Noise(bad=(4,)), tmp_path, "disk")
    (path,) = tmp_path.glob("*.images")
    whole = path.read_bytes()
    end = len(whole) - 32
    text = int.from_bytes(whole[end + 16 : end + 24], "little")
    damaged = bytearray(whole)
    start = {"sizes": end - text - 640, "bad": end - text, "lengths": end}[place]
    damaged[start : start + 8] = (-3).to_bytes(8, "little", signed=True)
    path.write_bytes(damaged)
    source = Noise(bad=(4,))
    store = open_store(source, tmp_path, "disk")
    assert source.reads == 32 + 40
    assert "is damaged; decoding the images again" in capsys.readouterr().err
    assert sorted(store.bad.found) == [4]
    assert path.read_bytes() == whole


def test_a_damaged_file_on_a_read_only_mount_is_decoded_again(tmp_path, monkeypatch, capsys):
    open_store(Noise(), tmp_path, "disk")
    (path,) = tmp_path.glob("*.images")
    damaged = bytearray(path.read_bytes())
    damaged[-34 - 640 : -34 - 632] = (-3).to_bytes(8, "little", signed=True)  # the size of the first image
    path.write_bytes(damaged)

    def read_only(*_, **__):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "unlink", read_only)
    monkeypatch.setattr(cache_file, "FileLock", read_only)
    assert isinstance(open_store(Noise(), tmp_path, "auto"), DecodedStore)
    assert "is damaged; decoding the images again" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"cannot write the decoded images to .*Read-only file system"):
        open_store(Noise(), tmp_path, "disk")


@pytest.mark.parametrize(
    "line",
    [
        '{"first": 0}',
        '{"first": 0, "sizes": [[-1, 4]], "bad": []}',
        '{"first": 0, "sizes": [[1, 1]], "bad": [[77, "x", "y"]]}',
        "[]",
        "3",
        "\xff",
    ],
)
def test_a_damaged_journal_is_not_believed(tmp_path, line):
    open_store(Noise(), tmp_path, "disk")
    (path,) = tmp_path.glob("*.images")
    whole = path.read_bytes()
    path.rename(path.with_suffix(".partial"))
    path.with_suffix(".journal").write_text(line + "\n", encoding="latin-1")
    open_store(Noise(), tmp_path, "disk")
    assert path.read_bytes() == whole


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_decoding_goes_on_after_a_fork(tmp_path):
    store = open_store(Noise(), tmp_path, "none")
    expected = store.gather(np.arange(4))[0].pixels
    child = os.fork()
    if child == 0:
        os._exit(0 if torch.equal(store.gather(np.arange(4))[0].pixels, expected) else 1)
    for _ in range(200):
        process, status = os.waitpid(child, os.WNOHANG)
        if process:
            break
        time.sleep(0.05)
    else:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert (process, status) == (child, 0)


def test_other_channel_counts_are_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"delivers uint8 \[8, 6, 1\]: set --data.channels 1$"):
        open_store(Noise(equal=True, channels=1), tmp_path)
    with pytest.raises(
        ValueError, match=r"\[height, width, 3\] \(data.channels is 3\), but .* delivers uint8 \[8, 6, 5\]$"
    ):
        open_store(Noise(equal=True, channels=5), tmp_path)


def test_without_a_terminal_progress_is_lines_of_text(capsys):
    assert list(show_progress(range(3), 5, "decoding", first=2, every=0.0)) == [0, 1, 2]
    assert capsys.readouterr().err.splitlines() == ["decoding: 3 of 5", "decoding: 4 of 5", "decoding: 5 of 5"]
    assert list(show_progress(range(3), 3, "decoding")) == [0, 1, 2]
    assert list(show_progress(range(3), 3, "decoding", enabled=False, every=0.0)) == [0, 1, 2]
    assert capsys.readouterr().err == ""


def test_progress_appears_only_if_it_takes_long(capsys, monkeypatch):
    monkeypatch.setattr(console.CONSOLE, "_force_terminal", True)
    assert list(show_progress(range(5), 5, "decoding", after=10.0)) == list(range(5))
    assert capsys.readouterr().err == ""
    assert list(show_progress(range(5), 5, "decoding", after=0.0)) == list(range(5))
    assert "decoding" in capsys.readouterr().err
