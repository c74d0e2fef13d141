"""A run's folder belongs to one process at a time."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from run_comparison import arguments_for
from ssl_toolkit.cli.train import train
from ssl_toolkit.run_folder import CONFIG, new_run
from ssl_toolkit.runtime.run_lock import LOCK, held

HOLD = """
import sys, pathlib
from ssl_toolkit.runtime.run_lock import held
with held(pathlib.Path(sys.argv[1]), is_new=False):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder():
    """Starts another process that holds a folder, and ends when it is told to."""
    processes = []

    def hold(run):
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(run)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        processes.append(process)
        return process

    yield hold
    for process in processes:
        process.kill()
        process.communicate()


@pytest.mark.guarantee("R17")
@pytest.mark.slow
def test_a_new_run_and_a_resumed_one_wait_for_nobody(tmp_path, holder):
    arguments = [*arguments_for("SimCLR", tmp_path, max_epochs=1), "--out", str(tmp_path / "run")]
    process = holder(tmp_path / "run")
    with pytest.raises(
        ValueError, match=r"another process is training in .*: wait until it has ended, or choose another"
    ):
        train("pretrain", arguments, quietly=True)
    assert not (tmp_path / "run" / CONFIG).exists()
    process.communicate("")
    run = train("pretrain", arguments, quietly=True)
    rows = (run / "metrics.csv").read_text()
    process = holder(run)
    with pytest.raises(ValueError, match="another process is training in"):
        train("pretrain", ["--resume", str(run)], quietly=True)
    assert (run / "metrics.csv").read_text() == rows
    # what a dead process held is free
    process.kill()
    process.communicate()
    train("pretrain", ["--resume", str(run), "--trainer.max_epochs", "2"], quietly=True)


@pytest.mark.guarantee("R17")
def test_a_run_that_began_in_the_meantime_is_not_overwritten(tmp_path):
    (tmp_path / CONFIG).write_text("")
    with pytest.raises(ValueError, match="holds a run already"), held(tmp_path, is_new=True):
        raise AssertionError


def test_a_start_that_fails_leaves_no_folder(tmp_path):
    with held(tmp_path / "run", is_new=True):
        assert (tmp_path / "run" / LOCK).exists()
    assert list(tmp_path.iterdir()) == []
    # but what was there before stays
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(RuntimeError), held(tmp_path / "mine", is_new=True):
        raise RuntimeError
    assert [file.name for file in (tmp_path / "mine").iterdir()] == ["notes.txt"]


@pytest.mark.guarantee("R17")
def test_runs_of_one_second_have_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = set()
    for _ in range(5):
        monkeypatch.delenv("SSL_TOOLKIT_STARTED", raising=False)
        found.add(new_run(None, "simclr"))
        os.environ.pop("SSL_TOOLKIT_STARTED")
    assert len(found) == 5
    assert {Path("runs") / each.name for each in (tmp_path / "runs").iterdir()} == found


@pytest.mark.guarantee("R17")
def test_several_at_once(tmp_path, monkeypatch):
    """Twelve processes of one second."""
    monkeypatch.chdir(tmp_path)
    program = "from ssl_toolkit.run_folder import new_run; print(new_run(None, 'simclr'))"
    monkeypatch.delenv("SSL_TOOLKIT_STARTED", raising=False)

    def start(_):
        return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout

    with ThreadPoolExecutor(12) as pool:
        assert len(set(pool.map(start, range(12)))) == 12
