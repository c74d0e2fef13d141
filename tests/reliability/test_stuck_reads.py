"""Reads that never end and threads that fail: the run ends in time, says which file it was, and can be resumed."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from damaged_files import ROOT
from ssl_toolkit.data import BadImage, DecodingStore, FolderSource, ImageData, Source, decode_file
from ssl_toolkit.data.bad_files import BadFiles
from ssl_toolkit.data.decode_pool import ReadingThreads
from ssl_toolkit.data.frames import FrameData
from ssl_toolkit.data.loader import BatchLoader
from ssl_toolkit.errors import RunFailed
from ssl_toolkit.run_folder import newest_checkpoint

TIMEOUT = 1.5
RUNNER = """
import os, sys, time
from ssl_toolkit.cli import main
from ssl_toolkit.data import sources

real, how, names, mark, num = sources.decode_file, sys.argv[1], sys.argv[2].split(","), sys.argv[3], 0

def decode(path, name, *arguments):
    # from the 60th image on, which is after the first checkpoint
    global num
    num += 1
    if name in names and (num > 60 or how == "stuck at once"):
        if not os.path.exists(mark):
            with open(mark, "w") as file:
                file.write(f"{time.time()} {name}")
        if how.startswith("stuck"):
            os.read(os.pipe()[0], 1)  # as of a disk that has gone: this call of the system does not return
        if how == "no memory":
            raise MemoryError
        raise KeyError("a decoder with a bug")
    return real(path, name, *arguments)

sources.decode_file = decode
sys.exit(main(sys.argv[4:]))
"""


class Images(Source):
    """Image ``i`` is a pixel of value ``i``; reading one of them does something else."""

    def __init__(self, num: int, special: int, action) -> None:
        self.num, self.special, self.action = num, special, action

    def __len__(self) -> int:
        return self.num

    def read(self, index: int) -> np.ndarray:
        if index == self.special:
            self.action()
        return np.full((1, 1, 3), index % 256, dtype=np.uint8)

    def name(self, index: int) -> str:
        return f"image-{index}.png"

    def fingerprint(self) -> str:
        return ""


def loader(action, threads: int = 2, timeout: float = 0.5, num: int = 40) -> BatchLoader:
    source = Images(num, special=25, action=action)
    store = DecodingStore(source, 3, threads, BadFiles(num, announce=False), read_timeout=timeout)
    return BatchLoader(store, torch.zeros(num, dtype=torch.int64), np.arange(num), 8)


@pytest.mark.guarantee("R13")
@pytest.mark.parametrize("threads", [1, 4])
def test_a_read_that_never_ends_is_an_error_that_names_the_image(threads, reached):
    gate = threading.Event()
    batches = iter(loader(gate.wait, threads))
    start = time.monotonic()
    with pytest.raises(RunFailed, match=r"reading the image image-25.png has not ended in 0.5 seconds \(data.read_t"):
        list(batches)
    seconds = time.monotonic() - start
    gate.set()
    assert 0.5 < seconds < 0.5 + 2
    reached(f"{threads} thread(s), timeout 0.5 s: error that names the image after {seconds:.2f} s")


def test_slow_reads_are_none_that_never_end():
    """Each image has the whole time, however many a thread reads in one go."""
    source = Images(16, special=-1, action=None)
    read = source.read
    source.read = lambda index: time.sleep(0.1) or read(index)
    store = DecodingStore(source, 3, 1, BadFiles(16, announce=False), read_timeout=0.5)
    assert sum(len(batch.indices) for batch in BatchLoader(store, torch.zeros(16), np.arange(16), 16)) == 16


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (MemoryError(), RunFailed, r"reading the image image-25.png failed for want of .*\(no memory\)"),
        (OSError(24, "Too many open files"), RunFailed, r"image-25.png failed for want of .*Too many open files"),
        (KeyError("bug"), RuntimeError, r"reading the image image-25.png failed: KeyError: 'bug'"),
        (ValueError("wrong"), ValueError, r"reading the image image-25.png failed: ValueError: wrong"),
        (TimeoutError("slow"), RuntimeError, r"reading the image image-25.png failed: TimeoutError: slow"),
        (KeyboardInterrupt(), KeyboardInterrupt, "^$"),
    ],
)
def test_whatever_a_thread_raises_reaches_the_run_with_the_name(error, kind, message):
    def fail() -> None:
        raise error

    start = time.monotonic()
    with pytest.raises(kind, match=message):
        list(loader(fail))
    assert time.monotonic() - start < 10


def test_a_thread_of_batches_that_ends_without_a_word_is_noticed(monkeypatch):
    monkeypatch.setattr(BatchLoader, "_produce", lambda *_: None)
    with pytest.raises(RuntimeError, match="the thread that makes the batches has ended"):
        list(loader(None))


def test_threads_end_with_their_pool_and_cancel_what_waits():
    def running() -> int:
        return sum(thread.name.startswith("decode_") for thread in threading.enumerate())

    before = running()
    with ReadingThreads(3) as pool:
        assert pool.result(pool.submit(int, "7")) == 7
        gate = threading.Event()
        begun = threading.Barrier(4, timeout=30)
        busy = [pool.submit(lambda: begun.wait() >= 0 and gate.wait(30)) for _ in range(3)]
        begun.wait()
        waiting = pool.submit(int, "8")
        threading.Timer(0.1, gate.set).start()
    assert waiting.cancelled()
    assert all(each.result(30) for each in busy)
    deadline = time.monotonic() + 30
    while running() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert running() == before
    pool = ReadingThreads(2)
    assert running() == before + 2
    deadline = time.monotonic() + 30
    del pool
    while running() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert running() == before


def special_files(folder: Path) -> set[str]:
    """Things named like images that are no files: pipes, sockets, devices, loops, and links to them."""
    os.mkfifo(folder / "pipe.jpg")
    (folder / "to-pipe.png").symlink_to("pipe.jpg")
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "first.gif").symlink_to("second.gif")
    (folder / "second.gif").symlink_to("first.gif")
    for name, device in (("zero.bmp", "/dev/zero"), ("terminal.bmp", "/dev/tty"), ("full.tif", "/dev/full")):
        (folder / name).symlink_to(device)
    with socket.socket(socket.AF_UNIX) as listening:
        before = Path.cwd()
        os.chdir(folder)  # the path of a socket may not be long
        try:
            listening.bind("socket.jpg")
        finally:
            os.chdir(before)
    (folder / "folder.jpg").mkdir()
    (folder / "up.jpg").symlink_to(folder)
    return {path.name for path in folder.iterdir()} - {"folder.jpg", "up.jpg"}


@pytest.mark.guarantee("R13")
@pytest.mark.timeout(60)
def test_what_is_no_file_is_never_opened_as_an_image(tmp_path, monkeypatch, reached):
    folder = tmp_path / "images"
    folder.mkdir()
    expected = special_files(folder)
    for number in range(40):
        Image.new("RGB", (4, 4), (number, 0, 0)).save(folder / f"{number:02}.png")
    opened = []
    monkeypatch.setattr(os, "open", lambda path, *rest, real=os.open: opened.append(str(path)) or real(path, *rest))
    source = FolderSource(folder)
    assert {source.name(index) for index in range(len(source))} == expected | {f"{n:02}.png" for n in range(40)}
    start = time.monotonic()
    for cache in ("memory", "none"):
        data = ImageData(str(folder), image_size=4, batch_size=8, max_bad=0.5, cache=cache, val_fraction=0.0)
        assert sum(len(batch.indices) for batch in data.loader("train")) >= 40
        assert {error.path for error in data.bad_files} == expected
    # a file that is exchanged for a pipe after the folder was listed
    (folder / "00.png").unlink()
    os.mkfifo(folder / "00.png")
    with pytest.raises(BadImage, match=r"00.png: not a file, but a pipe"):
        decode_file(folder / "00.png", "00.png")
    # sequences, as frames and as tensors
    sequences = tmp_path / "sequences"
    (sequences / "one").mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(sequences / "one" / "0.png")
    for name in ("one/1.png", "pipe.npy", "pipe.pt", "pipe.safetensors"):
        os.mkfifo(sequences / name)
    data = FrameData(str(sequences), image_size=4, batch_size=1, max_bad=0.9, cache="none", val_fraction=0.0)
    assert len(list(data.loader("train"))) == 4
    assert len(data.bad_files) == 4
    assert time.monotonic() - start < 20
    names = {Path(path).name for path in opened}
    assert not names & (expected | {"1.png", "pipe.npy", "pipe.pt", "pipe.safetensors"} - {"00.png"})
    reached(f"{len(expected) + 5} pipes, sockets, devices and loops named like images: none opened, each named")


def write_images(folder: Path) -> list[str]:
    folder.mkdir()
    draw = np.random.default_rng(0)
    for number in range(48):
        pixels = draw.integers(0, 256, (28, 28, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02}.png")
    return [f"{number:02}.png" for number in range(48)]


def recipe(folder: Path, images: Path) -> Path:
    backbone = {"name": "resnet10t", "kwargs": {"channels": [8, 8, 16, 16], "drop_path_rate": 0.2}}
    described = {
        "seed": 0,
        "model": {
            "class_path": "pretext.simclr.SimCLR",
            "init_args": {
                "backbone": backbone,
                "view": {"size": 24},
                "projector_widths": [16, 8],
                "optimizer": {"class_path": "ssl_toolkit.optim.AdamW", "init_args": {"lr": 0.002}},
                "schedule": {"class_path": "ssl_toolkit.schedule.Cosine", "init_args": {"warmup_steps": 2}},
            },
        },
        "data": {
            "path": str(images), "image_size": 28, "batch_size": 8, "cache": "none", "num_threads": 2,
            "read_timeout": TIMEOUT, "val_fraction": 0.0,
        },
        "evaluation": {"every_n_epochs": 0},
        "checkpoint": {"every_n_steps": 1},
        "trainer": {"max_epochs": 3, "accelerator": "cpu", "log_every_n_steps": 1},
        "tracker": "none",
    }  # fmt: skip
    (folder / "recipe.yaml").write_text(yaml.safe_dump(described))
    return folder / "recipe.yaml"


def run(how: str, names: list[str], mark: Path, *arguments: str) -> subprocess.CompletedProcess:
    """A run in a separate process, in which reading an image goes wrong; the mark then says when it began."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), environment.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", RUNNER, how, ",".join(names), str(mark), *arguments]
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        said, failed = process.communicate(timeout=200)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        said, failed = process.communicate()
        pytest.fail(f"still running: {said[-1000:]} {failed[-1000:]}")
    return subprocess.CompletedProcess(command, process.returncode, said, failed)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    checkpoint = newest_checkpoint(folder)
    assert checkpoint is not None
    return torch.load(checkpoint, weights_only=True)["state_dict"]


@pytest.mark.guarantee("R13")
@pytest.mark.slow
@pytest.mark.timeout(700)
def test_a_stuck_read_ends_the_run_and_it_can_be_resumed(tmp_path, reached):
    names = write_images(tmp_path / "images")
    given = ["pretrain", "-c", str(recipe(tmp_path, tmp_path / "images"))]
    mark = tmp_path / "mark"
    whole = run("", [], mark, *given, "--out", str(tmp_path / "whole"))
    assert whole.returncode == 0, whole.stderr
    stopped = run("stuck", names[:1], mark, *given, "--out", str(tmp_path / "stuck"))
    ended = time.time()
    assert stopped.returncode == 1, stopped.stderr
    found = re.search(r"error: reading the image (\S+) has not ended in 1.5 seconds", stopped.stderr)
    assert found, stopped.stderr
    since, name = mark.read_text().split()
    assert found[1] == name
    assert "Traceback" not in stopped.stderr
    seconds = (tmp_path / "stuck" / "status.json").stat().st_mtime - float(since)
    assert TIMEOUT < seconds < TIMEOUT + 2
    status = json.loads((tmp_path / "stuck" / "status.json").read_text())
    assert status["state"] == "failed"
    assert name in status["reason"]
    assert status["step"] > 0
    again = run("", [], mark, "pretrain", "--resume", str(tmp_path / "stuck"))
    assert again.returncode == 0, again.stderr
    first, second = weights(tmp_path / "whole"), weights(tmp_path / "stuck")
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    reached(
        f"a read that does not return: error {seconds:.1f} s after it began with a timeout of {TIMEOUT} s (the default "
        f"is 300), process gone after {ended - float(since):.1f} s, exit code {stopped.returncode}, the image named, "
        "resumed to the same bits; there are no worker processes that could die"
    )


@pytest.mark.guarantee("R13")
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("no memory", r"error: reading the image NAME failed for want of the machine's means.*no memory"),
        ("bug", r"RuntimeError: reading the image NAME failed: KeyError: 'a decoder with a bug'"),
        ("stuck at once", r"error: reading the image \S+ has not ended in 1.5 seconds"),
    ],
)
def test_other_failures_of_reading_threads(tmp_path, how, message, reached):
    names, mark = write_images(tmp_path / "images"), tmp_path / "mark"
    cache = ["--data.cache", "memory"] if how == "stuck at once" else []
    given = ["pretrain", "-c", str(recipe(tmp_path, tmp_path / "images")), *cache]
    failed = run(how, names, mark, *given, "--out", str(tmp_path / "run"))
    seconds = time.time() - float(mark.read_text().split()[0])
    assert failed.returncode == 1, failed.stderr
    assert re.search(message.replace("NAME", r"\S+"), failed.stderr), failed.stderr
    if how == "stuck at once":  # before the run began there is nothing to resume
        assert not (tmp_path / "run").exists()
        reached(
            f"a read that does not return while the cache is made: named, exit code 1 after {seconds:.1f} s, no run"
        )
        return
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "failed"
    again = run("", [], mark, "pretrain", "--resume", str(tmp_path / "run"))
    assert again.returncode == 0, again.stderr
    reached(f"{how} in a reading thread: the image named, exit code 1 after {seconds:.1f} s, resumed to the end")
