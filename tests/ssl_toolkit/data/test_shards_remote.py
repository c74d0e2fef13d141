"""Shards behind a web server and in an object store: copies of bounded size, servers that fail, secrets."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import time
from pathlib import Path

import fsspec
import numpy as np
import pytest

from ssl_toolkit.data import ImageData
from ssl_toolkit.data.shards import ShardOptions, ShardSource, remote
from ssl_toolkit.data.shards import source as source_module
from ssl_toolkit.data.shards.local_cache import LocalCache
from ssl_toolkit.data.shards.prefetch import prefetch
from tar_shards import number_of, web_server, write_shards, write_tar

ALL = "train-{000000..000005}.tar"


@pytest.fixture(autouse=True)
def hurry(monkeypatch):
    monkeypatch.setattr(remote, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(remote, "TIMEOUT", 20)


@pytest.fixture
def shards(tmp_path):
    return write_shards(tmp_path / "shards")


@pytest.fixture
def server(shards):
    with web_server(shards) as server:
        yield server


def open_shards(path, tmp_path, **arguments) -> ShardSource:
    return ShardSource(str(path), **{"cache_dir": tmp_path / "cache", "progress": False, **arguments})


def numbers(source):
    return [number_of(source.read(index)) for index in range(len(source))]


@pytest.fixture
def store(shards, request):
    """The shards in fsspec's memory file system, which stands for an object store."""
    system = fsspec.filesystem("memory")
    bucket = f"memory://{request.node.name.partition('[')[0]}"
    for file in shards.glob("*.tar"):
        system.pipe_file(f"{bucket}/{file.name}", file.read_bytes())
    yield bucket
    system.rm(bucket, recursive=True)


def test_over_http_the_same_as_here(shards, server, tmp_path):
    here = open_shards(shards, tmp_path)
    there = open_shards(f"{server.address}/{ALL}", tmp_path)
    assert numbers(there) == numbers(here) == list(range(30))
    assert there.labels().tolist() == here.labels().tolist()
    assert [there.name(index) for index in range(30)] == [here.name(index) for index in range(30)]
    assert sorted(server.downloads()) == sorted(file.name for file in shards.glob("*.tar"))  # each once
    again = open_shards(f"{server.address}/{ALL}", tmp_path)
    assert numbers(again) == list(range(30))
    assert len(server.downloads()) == 6


@pytest.mark.parametrize("pattern", [ALL, "train-*.tar", "", "train-00000[0-5].tar"])
def test_in_an_object_store_the_same_as_here(store, tmp_path, pattern):
    source = open_shards(f"{store}/{pattern}", tmp_path)
    assert numbers(source) == list(range(30))
    assert source.name(7) == "train-000001.tar/000007.png"
    assert source.groups().window == 16
    with pytest.raises(ValueError, match=r"there is no shard under 'memory://.*/nothing\*'"):
        open_shards(f"{store}/nothing*", tmp_path)
    with pytest.raises(ValueError, match=r"the shard 'memory://.*/train-000006.tar' is not there"):
        open_shards(f"{store}/train-{{000000..000006}}.tar", tmp_path)


@pytest.mark.parametrize("info", [{"type": "directory", "size": 0}, {"type": "file", "size": None}])
def test_a_folder_or_a_file_of_unknown_size_in_an_object_store_is_no_shard(store, tmp_path, monkeypatch, info):
    with monkeypatch.context() as patch:
        patch.setattr(type(fsspec.filesystem("memory")), "info", lambda self, path: {"name": path, **info})
        with pytest.raises(ValueError, match="it is a folder, or the store does not say how large it is"):
            open_shards(f"{store}/train-000000.tar", tmp_path)


def test_a_list_may_mix_here_and_there(shards, server, tmp_path):
    (shards / "list.txt").write_text(f"train-000002.tar\n{server.address}/train-000000.tar\n")
    assert numbers(open_shards(shards / "list.txt", tmp_path)) == [*range(10, 15), *range(5)]


def test_a_server_that_stumbles(server, tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "TIMEOUT", 1)
    server.faults = {
        "train-000000.tar": [503, 429],
        "train-000001.tar": ["cut", "cut"],
        "train-000002.tar": ["stall"],
        "train-000003.tar": [500, "cut", "stall"],
    }
    source = open_shards(f"{server.address}/{ALL}", tmp_path)
    assert numbers(source) == list(range(30))
    # after a cut only the rest was asked for
    size = source._found[1].size
    spans = [span for method, name, span in server.asked if method == "GET" and name == "train-000001.tar"]
    assert spans == ["", f"bytes={size // 2}-", f"bytes={size // 2 + (size - size // 2) // 2}-"]


@pytest.mark.parametrize(
    ("faults", "reason"),
    [
        ([404], "the server says 404 Not Found"),
        ([403], "the server says 403 Forbidden"),
        ([500] * 99, "in 5 tries: the server says 500 Internal Server Error; check the network and the server"),
        (["stall"] * 99, "in 5 tries: .*timed out"),
    ],
)
def test_a_server_that_fails_for_good(server, tmp_path, monkeypatch, faults, reason):
    monkeypatch.setattr(remote, "TIMEOUT", 0.7)
    server.faults = {"train-000003.tar": faults}
    with pytest.raises(
        ValueError, match=rf"cannot read the shard '{server.address}/train-000003.tar'.*{reason}"
    ) as error:
        open_shards(f"{server.address}/{ALL}", tmp_path)
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "cache").rglob("*.partial"))


def test_shards_that_are_missing_or_no_server_at_all(server, tmp_path):
    with pytest.raises(ValueError, match=r"'http://.*/train-000006.tar': the server says 404"):
        open_shards(f"{server.address}/train-{{000000..000006}}.tar", tmp_path)
    assert server.downloads() == []  # known before anything is fetched
    with pytest.raises(ValueError, match=r"cannot read the shard 'http://127.0.0.1:1/a.tar' in 5 tries: .*refused"):
        open_shards("http://127.0.0.1:1/a.tar", tmp_path)
    with pytest.raises(ValueError, match=r"cannot read the shard 'http://127.0.0.1:x/a.tar'"):
        open_shards("http://127.0.0.1:x/a.tar", tmp_path)


def test_a_server_that_does_not_know_head(server, tmp_path):
    server.knows_head = False
    assert numbers(open_shards(f"{server.address}/{ALL}", tmp_path)) == list(range(30))


def test_a_package_that_is_not_installed_is_named(tmp_path, monkeypatch):
    def missing(*_):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr("fsspec.core.url_to_fs", missing)
    with pytest.raises(ValueError, match=r"addresses of s3:// need one more package: pip install s3fs$"):
        open_shards("s3://bucket/a.tar", tmp_path)
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"cannot read the shard 'nope://bucket/a.tar': .*nope"):
        open_shards("nope://bucket/a.tar", tmp_path)


def test_a_shard_that_changes_behind_its_index(shards, server, tmp_path):
    source = open_shards(f"{server.address}/{ALL}", tmp_path, options=ShardOptions(cache_gb=1))
    for file in (tmp_path / "cache" / "shards").glob("*.tar"):
        file.unlink()
    write_tar(shards / "train-000001.tar", [("new.png", b"")])
    assert number_of(source.read(0)) == 0
    with pytest.raises(
        ValueError, match=r"'.*/train-000001.tar': it has changed since its index was made; start again"
    ):
        source.read(5)
    assert len(open_shards(f"{server.address}/{ALL}", tmp_path)) == 26


def image_data(path, tmp_path, **arguments):
    settings = {"source": "shards", "image_size": 8, "batch_size": 6, "val_fraction": 0, "cache": "none"}
    return ImageData(str(path), **{**settings, "cache_dir": str(tmp_path / "cache"), **arguments})


def removed_but_open():
    """Bytes of copies that were removed, but keep their room until they are closed."""
    total = 0
    for each in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            total += each.stat().st_size if str(each.readlink()).endswith(".tar (deleted)") else 0
    return total


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="open files are counted by way of /proc")
def size_of(file):
    """Bytes of a file; another thread may be removing it."""
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return 0


@pytest.mark.guarantee("X2")
@pytest.mark.slow
def test_training_fetches_ahead_and_keeps_few_copies(tmp_path, monkeypatch, reached):
    """24 shards, windows of 3: each is fetched once an epoch, and what lies here never exceeds the limit."""
    shards = write_shards(tmp_path / "shards", shards=24, images=6)
    size = max(file.stat().st_size for file in shards.glob("*.tar"))
    limit = 7 * size  # two windows, and one shard more
    taken = []
    original = LocalCache._make

    def make(self, *arguments):
        original(self, *arguments)
        taken.append(removed_but_open() + sum(map(size_of, self.folder.iterdir())))

    monkeypatch.setattr(LocalCache, "_make", make)
    with web_server(shards) as server:
        arguments = {"shard_window": 3, "shard_cache": limit / 1e9, "num_threads": 2}
        data = image_data(f"{server.address}/train-{{000000..000023}}.tar", tmp_path, **arguments)
        loader = data.train_dataloader()
        whole = []
        for _ in range(2):
            server.asked.clear()
            for batch in loader:
                whole.append(batch.indices.tolist())
                seen = [number_of(pixels.permute(1, 2, 0).numpy()) for pixels in batch.images.pixels]
                assert seen == batch.indices.tolist()
            fetched = server.downloads()
            assert len(set(fetched)) >= 24 - 7  # those of the end of the last epoch may still be here
            assert len(fetched) <= 24 + 6
        assert max(taken) <= limit
        # and the same order goes on after a stop, with nothing in the cache
        for file in (tmp_path / "cache" / "shards").glob("*.tar"):
            file.unlink()
        other = image_data(f"{server.address}/train-{{000000..000023}}.tar", tmp_path, **arguments)
        other.load_state_dict({"epoch": 1, "batch": 7, "window": 3})
        assert [batch.indices.tolist() for batch in other.train_dataloader()] == whole[24 + 7 :]
    reached(
        f"24 shards over http, windows of 3: {len(fetched)} downloads in the second epoch; at most "
        f"{max(taken) / size:.1f} of the 7 shards that were allowed lay on the disk; {len(whole) - 31} of "
        f"{len(whole) - 31} batches equal after a resume"
    )


def test_shards_are_there_before_they_are_asked_for(server, tmp_path, monkeypatch):
    """With nothing to decode, the reader finds shards of the next window already fetched."""
    source = open_shards(f"{server.address}/{ALL}", tmp_path, options=ShardOptions(window=2))
    for file in (tmp_path / "cache" / "shards").glob("*.tar"):
        file.unlink()
    source._open.clear()
    server.asked.clear()
    ahead = source.ahead(iter([np.array([0, 5]), np.array([1, 6]), np.array([10, 15]), np.array([20, 25])]))
    next(ahead)
    deadline = time.monotonic() + 20
    while len(server.downloads()) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.2)
    assert sorted(server.downloads()) == [f"train-00000{number}.tar" for number in range(4)]  # not yet the last two
    ahead.close()


def test_fetching_ahead_is_bounded():
    events, running = [], threading.Lock()

    def fetch(shard, stopped):
        with running:
            events.append(shard)
        if shard == 3:
            raise ValueError("will be said by whoever needs it")

    batches = [[0, 1], [0, 1], [1, 2], [2, 3], [4, 5], [4, 6], [7, 7], [8]]
    retired = []
    ahead = prefetch(iter([np.array(batch) for batch in batches]), 4, fetch, retired.append)
    for begun, batch in enumerate(batches):
        next(ahead)
        deadline = time.monotonic() + 20
        while not set(batch) <= set(events) and time.monotonic() < deadline:
            time.sleep(0.005)
        assert set(batch) <= set(events)  # what is needed is always asked for, soonest first
        needed_later = {shard for later in batches[begun:] for shard in later}
        assert len(set(events) & needed_later) <= 4 + 1
        assert not set(retired) & needed_later
    ahead.close()
    assert sorted(set(events)) == list(range(9))


def test_too_little_room_for_two_windows_is_said(server, tmp_path):
    with pytest.raises(ValueError, match=r"data.shard_cache is 1e-05 GB, but two windows of 2 shards .* take up to"):
        open_shards(f"{server.address}/{ALL}", tmp_path, options=ShardOptions(window=2, cache_gb=1e-5))


def test_a_full_disk_is_said(server, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(remote, "_copy_http", full)
    with pytest.raises(
        ValueError, match=r"cannot keep copies of shards in .*: No space left on device; set data.cache_d"
    ):
        open_shards(f"{server.address}/{ALL}", tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot keep copies of shards in"):
        open_shards(f"{server.address}/{ALL}", tmp_path, cache_dir=tmp_path / "file")


def test_copies_that_are_used_outlive_others_and_parts_of_killed_processes_go(server, tmp_path):
    folder = tmp_path / "copies"
    found = {name: remote.look(f"{server.address}/{name}") for name in (f"train-00000{n}.tar" for n in range(5))}
    size = max(each.size for each in found.values())
    cache = LocalCache(folder, 3 * size)
    (folder / "dead.1000.partial").write_bytes(b"x")
    os.utime(folder / "dead.1000.partial", (0, 0))
    paths = {}
    for name in ("train-000000.tar", "train-000001.tar", "train-000002.tar", "train-000000.tar", "train-000003.tar"):
        paths[name] = cache.fetch(f"{server.address}/{name}", found[name])
        time.sleep(0.02)
    there = {name for name, path in paths.items() if path.exists()}
    assert there == {"train-000000.tar", "train-000002.tar", "train-000003.tar"}
    assert not list(folder.glob("*.partial"))


def fetch_all(address, cache):
    source = ShardSource(address, cache_dir=Path(cache), progress=False)
    return numbers(source)


@pytest.mark.slow
def test_processes_of_one_machine_share_the_copies(run_processes, server, tmp_path):
    results = run_processes(fetch_all, 2, f"{server.address}/{ALL}", str(tmp_path / "cache"))
    assert results == [list(range(30))] * 2
    assert sorted(server.downloads()) == [f"train-00000{number}.tar" for number in range(6)]


def test_keys_in_addresses_are_written_nowhere(server, tmp_path, capsys, monkeypatch):
    address = f"{server.address}/{ALL}?signature=SECRET"
    data = image_data(address, tmp_path, val_fraction=0.2)
    data.setup()
    said = capsys.readouterr().err + data.summary() + data.name("train", 0)
    assert "SECRET" not in said
    assert "6 shards of" in said
    assert "validation and test images lie in every remote shard" in said
    for file in (tmp_path / "cache").rglob("*"):
        assert not file.is_file() or b"SECRET" not in file.read_bytes(), file
    # another key for the same files needs no other index
    server.asked.clear()
    assert len(open_shards(address.replace("SECRET", "OTHER"), tmp_path)) == 30
    assert server.downloads() == []
    server.faults = {"train-000003.tar": [500] * 99}
    for file in (tmp_path / "cache").rglob("*.tar"):
        file.unlink()
    with pytest.raises(ValueError, match=r"train-000003.tar") as error:
        open_shards(address, tmp_path).read(15)
    assert "SECRET" not in str(error.value)


def test_a_small_set_is_decoded_once_and_needs_no_shard_any_more(server, tmp_path):
    arguments = {"cache": "disk", "shard_window": 2}
    first = image_data(f"{server.address}/{ALL}", tmp_path, **arguments)
    reference = [batch.indices.tolist() for batch in first.train_dataloader()]
    for file in (tmp_path / "cache" / "shards").glob("*.tar"):
        file.unlink()
    server.asked.clear()
    second = image_data(f"{server.address}/{ALL}", tmp_path, **arguments)
    assert [batch.indices.tolist() for batch in second.train_dataloader()] == reference
    assert server.downloads() == []


def test_the_open_files_are_few(shards, tmp_path, monkeypatch):
    monkeypatch.setattr(source_module, "_MOST_OPEN", 2)
    source = open_shards(shards, tmp_path)
    before = len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self/fd").exists() else 0
    assert numbers(source) == list(range(30))
    if before:
        assert len(list(Path("/proc/self/fd").iterdir())) <= before + 2


def test_a_copy_that_is_removed_before_it_is_opened_is_made_again(tmp_path, monkeypatch):
    """Another thread that needs the room may be quicker."""
    shards = write_shards(tmp_path / "shards", shards=3, images=4)
    original, fetched = LocalCache.fetch, []

    def fetch(self, address, *arguments):
        path = original(self, address, *arguments)
        fetched.append(address)
        if fetched.count(address) % 2:
            path.unlink()
        return path

    monkeypatch.setattr(LocalCache, "fetch", fetch)
    with web_server(shards) as server:
        data = image_data(f"{server.address}/train-{{000000..000002}}.tar", tmp_path, val_fraction=0, num_threads=1)
        seen = [index for batch in data.loader("train") for index in batch.indices.tolist()]
    assert seen == list(range(12))
    assert len(fetched) > 6
