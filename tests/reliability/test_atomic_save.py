"""kill -9 while a checkpoint is saved: the newest one can be read, wherever the system has its temporary folder."""

from __future__ import annotations

import os
import random
import signal
import tempfile
import time
from pathlib import Path

import pytest
import torch

from fork_server import ForkServer
from run_comparison import arguments_for
from ssl_toolkit.cli.train import train
from ssl_toolkit.run_folder import CHECKPOINTS, newest_checkpoint

KILLS = 30
NUM_FLOATS = 200_000
OTHER = Path("/dev/shm")


@pytest.fixture(scope="module")
def server():
    with ForkServer() as each:
        yield each


@pytest.fixture(params=["same", "other"])
def temporary(request, tmp_path):
    """The system's folder for temporary files, on the file system of the run or on another one."""
    if request.param == "same":
        (tmp_path / "tmp").mkdir()
        yield tmp_path / "tmp"
        return
    if not OTHER.is_dir() or OTHER.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is one file system only")
    with tempfile.TemporaryDirectory(dir=OTHER) as folder:
        yield Path(folder)


def wait_until(is_so, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.0002)


def newest_name(folder):
    return max((each.name for each in folder.glob("step-*.ckpt")), default="")


@pytest.mark.guarantee("R8")
@pytest.mark.timeout(300)
@pytest.mark.slow
def test_no_checkpoint_is_lost_to_a_kill_while_it_is_saved(server, temporary, tmp_path, reached):
    folder, generator, num_orphans, last = tmp_path / CHECKPOINTS, random.Random(0), 0, 0
    folder.mkdir()
    for number in range(KILLS):
        # half of the kills come from outside, soon after a checkpoint got its name, half at a flush or at a renaming;
        # five of these are a saving
        kill_at = 5 + number // 2 % 10 if number % 2 else None
        arguments = [str(tmp_path), str(temporary), NUM_FLOATS, kill_at]
        pid = server.start("killed_runs.save_without_end", *arguments, log=tmp_path / "log.txt")
        if kill_at is None:
            before = newest_name(folder)
            for _ in range(2):
                wait_until(lambda: newest_name(folder) != before)  # noqa: B023
                before = newest_name(folder)
            time.sleep(generator.random() * 0.01)
            os.kill(pid, signal.SIGKILL)
        assert server.wait(pid) == -signal.SIGKILL, (tmp_path / "log.txt").read_text()

        newest = newest_checkpoint(tmp_path)
        assert newest is not None
        content = torch.load(newest, weights_only=True)
        assert newest.name == newest_name(folder), "a checkpoint that has its name is whole"
        assert int(newest.stem.split("-")[1]) == content["step"] > last
        assert (content["weights"] == content["step"]).all()
        last = content["step"]
        orphans = [each.name for each in folder.glob(".*")]
        num_orphans += len(orphans)
        assert all(f".{pid}." in each for each in orphans), "a start removes what the last one has left"
    assert num_orphans > 0
    assert list(temporary.iterdir()) == []
    reached(f"0 of {KILLS} newest checkpoints unreadable; {num_orphans} parts left by kills, gone at the next start")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_same_kills_find_the_fault_of_a_saving_that_is_not_atomic(server, tmp_path):
    """Lightning's own saving ends, on another file system, with a copy over the old file."""
    if not OTHER.is_dir() or OTHER.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is one file system only")
    file, unreadable = tmp_path / "last.ckpt", 0

    def state():
        return (file.stat().st_mtime_ns, file.stat().st_size) if file.exists() else None

    for _ in range(10):
        with tempfile.TemporaryDirectory(dir=OTHER) as temporary:
            arguments = [str(file), temporary, 20 * NUM_FLOATS]
            pid = server.start("killed_runs.save_without_end_as_lightning_does", *arguments, log=tmp_path / "log.txt")
            for _ in range(3):
                before = state()
                wait_until(lambda: state() != before)  # noqa: B023
            os.kill(pid, signal.SIGKILL)
            assert server.wait(pid) == -signal.SIGKILL
        try:
            torch.load(file, weights_only=True)
        except Exception:
            unreadable += 1
    assert unreadable > 0


@pytest.mark.guarantee("R8")
def test_the_next_start_removes_what_a_kill_has_left_anywhere_in_the_run(tmp_path, reached):
    start = arguments_for("SimCLR", tmp_path, max_epochs=1)
    run = train("pretrain", [*start, "--out", str(tmp_path / "run")], quietly=True)
    files = sorted(file for file in run.rglob("*") if file.is_file())
    orphans = [
        run / ".backbone.safetensors.123.partial",
        run / ".status.json.123.partial",
        run / CHECKPOINTS / ".step-0000000003.ckpt.123.partial",
        # the checksum comes first, and this checkpoint never came
        run / CHECKPOINTS / "step-0000000003.ckpt.sha256",
    ]
    for file in orphans:
        file.write_bytes(b"part")
    train("pretrain", ["--resume", str(run)], quietly=True)
    assert sorted(file for file in run.rglob("*") if file.is_file()) == files
    reached(f"{len(orphans)} of {len(orphans)} left-over files gone at the next start")
